"""Trading time for memory: decoder layers that keep only their input and compute the rest again on the way back."""

from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from rlhf.errors import ConfigError


def enable_activation_checkpointing(model: nn.Module) -> None:
    """Makes the decoder layers of a model recompute themselves in the backward pass.

    Results and gradients stay the same; a training step takes about a third longer. It works in eval mode, in which
    our models are trained (they have no dropout), until `train` or `eval` is called on the model again.

    Args:
        model: a transformers model, or a PolicyModel or ScalarModel around one.
    Raises: ConfigError if its architecture has no layers that can.
    """
    inner = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
    layers = [module for module in inner.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers or not inner.supports_gradient_checkpointing:
        raise ConfigError(f"{type(inner).__name__} cannot recompute its layers; switch activation checkpointing off")
    inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for layer in layers:
        # The layer itself asks whether it is in training; its parts stay in eval mode.
        layer.training = True
