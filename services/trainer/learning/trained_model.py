"""A model in training, on one rank or many: its module, its optimizer, its weights, and its state on disk."""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_services.common.errors import ConfigError
from rlhf_services.models.scalar_model import ScalarModel
from rlhf_services.models.weights import checkpoint_tensors
from rlhf_services.trainer.config import OptimizerConfig
from rlhf_services.trainer.learning.optimizer import MasterOptimizer, OptimizerStep
from rlhf_services.trainer.learning.ranks import Ranks

STATE_FILE = "optimizer.safetensors"


class TrainedModel:
    """A module that learns, and what belongs to it.

    Call `.module` for forward passes, run backward on losses that are normalised over the whole batch (gradients are
    summed over micro-batches and ranks), then `.step()`.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        optimizer_config: OptimizerConfig,
        *,
        total_steps: int,
        ranks: Ranks | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Takes the module over: on many ranks its parameters become shards.

        Args:
            name: for errors and metrics ("policy").
            module: a PreTrainedModel, a PolicyModel around one, or a ScalarModel, with its parameters in `dtype`.
            total_steps: length of the learning rate's schedule, in optimizer steps.
            dtype: of forward and backward passes and of the weights that are served; None takes the module's.
        """
        self.name = name
        self.module = module
        self.ranks = Ranks() if ranks is None else ranks
        self.dtype = next(module.parameters()).dtype if dtype is None else dtype
        self.optimizer = MasterOptimizer(name, module, optimizer_config, total_steps=total_steps)

    def step(self) -> OptimizerStep:
        """Takes one optimizer step on the gradients gathered since the last, and forgets them.

        Raises: NonFiniteError before anything is changed; RuntimeError if no backward pass was run.
        """
        return self.optimizer.step()

    def zero_grad(self) -> None:
        """Forgets the gradients gathered so far."""
        self.optimizer.zero_grad()

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yields the tensors of the model's checkpoint by their names there: on the CPU, in `dtype`, contiguous.

        Every rank must iterate to the end, and gets all tensors. On one rank on the CPU they are the model's own, and
        change when it does. A value head is no part of a policy's checkpoint; save_state has it.
        """
        if isinstance(self.module, ScalarModel):
            yield from _scalar_weights(self.module)
        else:
            yield from checkpoint_tensors(language_model(self.module))

    def save_weights(self, directory: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Writes weights, configuration and tokenizer as a Hugging Face checkpoint. Every rank must call it."""
        if isinstance(self.module, ScalarModel):
            self.module.save(directory, tokenizer)
        else:
            language_model(self.module).save_pretrained(directory)
            tokenizer.save_pretrained(directory)

    def save_state(self, directory: Path) -> None:
        """Writes trained parameters, moments and step counts: all that the next step needs. Every rank must call it."""
        directory.mkdir(parents=True, exist_ok=True)
        state = {key: value.contiguous() for key, value in self.optimizer.state_tensors().items()}
        save_file(state, directory / STATE_FILE)

    def load_state(self, directory: Path) -> None:
        """Goes on from what save_state wrote, on this or another number of ranks. Every rank must call it.

        The module must have been made from the files that the run began with. Raises: ConfigError if the state is of
        another model.
        """
        try:
            self.optimizer.load_state_tensors(load_file(directory / STATE_FILE))
        except ValueError as error:
            raise ConfigError(f"{directory}: {error}; resume with the models that the run began with") from None


def language_model(module: nn.Module) -> PreTrainedModel:
    """Returns the causal language model that a module is, or that a PolicyModel wraps."""
    inner = module if isinstance(module, PreTrainedModel) else getattr(module, "model", None)
    if not isinstance(inner, PreTrainedModel):
        raise TypeError(f"{type(module).__name__} is no language model and wraps none")
    return inner


def _scalar_weights(model: ScalarModel) -> Iterator[tuple[str, Tensor]]:
    with torch.device("meta"):
        prefix = AutoModelForSequenceClassification.from_config(model.backbone.config).base_model_prefix
    for name, tensor in checkpoint_tensors(model.backbone):
        yield f"{prefix}.{name}", tensor
    yield "score.weight", model.head.weight.detach().cpu().contiguous()
