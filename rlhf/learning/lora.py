"""Low-rank adapters (LoRA, arXiv:2106.09685) inside a model: W + alpha / rank * B A, where W is frozen."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from rlhf.errors import ConfigError
from rlhf.learning.config import LoraConfig
from rlhf.learning.sharding import LAYER_PREFIX

ADAPTER = "default"
BASE, DOWN, UP = ".base_layer.", f".lora_A.{ADAPTER}.", f".lora_B.{ADAPTER}."


def add_adapters(model: nn.Module, config: LoraConfig, seed: int) -> None:
    """Freezes a transformers model and puts adapters into its linear layers, in place; B starts at 0, so nothing moves.

    The adapters have the model's element type. Raises: ConfigError if peft is not installed, or no layer has the name.
    """
    try:
        import peft
    except ImportError:
        raise ConfigError(
            "lora is set, but peft is not installed: pip install 'rlhf-services[lora]', or leave the lora section out"
        ) from None
    dtype = next(model.parameters()).dtype
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # it divides it by r
        lora_dropout=0.0,
        target_modules=list(config.target_modules) or _linear_layers(model),
        bias="none",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            peft.inject_adapter_in_model(settings, model)
        except ValueError as error:
            raise ConfigError(
                f"lora.target_modules is {list(config.target_modules)}: {error}; name linear layers of the model, such "
                f"as {', '.join(_linear_layers(model))}"
            ) from None
    _require_plain_layers(model, config)
    for name, parameter in model.named_parameters():
        if DOWN in name or UP in name:
            parameter.data = parameter.data.to(dtype)


def merge_adapters(tensors: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Returns a layer's tensors with its adapters added to the weights they adapt, under the base model's names.

    Args: tensors: whole; not changed. scale: alpha / rank.
    """
    merged: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if DOWN in name or UP in name:
            continue
        down = tensors.get(name.replace(BASE, DOWN)) if BASE in name and name.endswith(".weight") else None
        if down is not None:
            up = tensors[name.replace(BASE, UP)]
            tensor = (tensor.float() + scale * (up.float() @ down.float())).to(tensor.dtype)
        merged[name.replace(BASE, ".")] = tensor
    return merged


def _linear_layers(model: nn.Module) -> list[str]:
    """Last names of the linear layers within the decoder layers."""
    lists = (each for each in model.modules() if isinstance(each, nn.ModuleList))
    found = {
        name.rpartition(".")[2]
        for each in lists
        for name, module in each.named_modules()
        if isinstance(module, nn.Linear) and ".lora_" not in name
    }
    return sorted(found - {"base_layer"})


def _require_plain_layers(model: nn.Module, config: LoraConfig) -> None:
    for name, module in model.named_modules():
        if name.endswith(".base_layer") and (not isinstance(module, nn.Linear) or not LAYER_PREFIX.match(name)):
            raise ConfigError(
                f"lora.target_modules is {list(config.target_modules)}: {name.removesuffix('.base_layer')} is no "
                "linear layer of a decoder layer; name only those"
            )
