"""A model in training, on one rank or many: its module, its optimizer, its weights, and its state on disk."""

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.core_model_loading import revert_weight_conversion

from rlhf.errors import ConfigError
from rlhf.learning.config import LoraConfig, OptimizerConfig
from rlhf.learning.lora import add_adapters, merge_adapters
from rlhf.learning.optimizer import MasterOptimizer, OptimizerStep, read_state, write_state
from rlhf.learning.ranks import ALONE, Ranks
from rlhf.learning.sharding import gather_by_layer, reshard, shard
from rlhf.models.policy_model import PolicyModel
from rlhf.models.scalar_model import ScalarModel
from rlhf.models.weights import tensor_info
from rlhf.weights import WeightsManifest


class TrainedModel:
    """A module that learns, and what belongs to it.

    Call `.module` for forward passes, run backward on losses that are normalised over the whole batch (gradients are
    summed over micro-batches and ranks), then `.step()`. Several forward passes may come before the first backward.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        optimizer_config: OptimizerConfig,
        *,
        total_steps: int,
        ranks: Ranks = ALONE,
        dtype: torch.dtype | None = None,
        lora: LoraConfig | None = None,
        seed: int = 0,
    ) -> None:
        """Takes the module over: with `lora` it gets adapters, on many ranks its parameters become shards.

        Args:
            name: for errors and metrics ("policy").
            module: a PreTrainedModel (one rank), a PolicyModel around one, or a ScalarModel, with its parameters in
                `dtype` and on their device.
            total_steps: length of the learning rate's schedule, in optimizer steps.
            dtype: of forward and backward passes and of the weights that are served; None takes the module's.
            seed: decides the adapters' first values.
        Raises: ConfigError if lora is set and peft is not installed or finds no layer.
        """
        self.name = name
        self.module = module
        self.ranks = ranks
        self.dtype = next(module.parameters()).dtype if dtype is None else dtype
        self._lora_scale = None if lora is None else lora.alpha / lora.rank
        self._frozen_digest = ""
        if lora is not None:
            frozen = _transformer(module).named_parameters()
            infos = (tensor_info(key, each.detach().cpu().contiguous()) for key, each in frozen)
            self._frozen_digest = WeightsManifest(tuple(infos)).digest
            add_adapters(_transformer(module), lora, seed)
        if ranks.world_size > 1:
            shard(module, ranks, self.dtype)
        self.optimizer = MasterOptimizer(name, module, optimizer_config, total_steps=total_steps, ranks=ranks)

    def step(self) -> OptimizerStep:
        """Takes one optimizer step on the gradients gathered since the last, and forgets them.

        Raises: NonFiniteError before anything is changed, on all ranks; RuntimeError if no backward pass was run.
        """
        reshard(self.module)
        return self.optimizer.step()

    def zero_grad(self) -> None:
        """Forgets the gradients gathered so far."""
        self.optimizer.zero_grad()

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yields the tensors of the model's checkpoint by their names there: on the CPU, in `dtype`, contiguous.

        Every rank must iterate to the end, and gets all tensors; those in shards are gathered a decoder layer at a
        time, and adapters are merged. Without either, on the CPU, they are the model's own and change when it does. A
        value head is no part of a policy's checkpoint; save_state has it.
        """
        transformer = _transformer(self.module)
        prefix = _scalar_prefix(self.module) if isinstance(self.module, ScalarModel) else ""
        for layer in self._whole_layers(transformer):
            for name, tensor in revert_weight_conversion(transformer, layer).items():
                yield prefix + name, tensor.cpu().contiguous()
        for name, tensor in self._whole_head().items():
            yield f"score.{name}", tensor.cpu().contiguous()

    def save_weights(self, directory: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Writes weights, configuration and tokenizer as a Hugging Face checkpoint. Every rank must call it.

        Raises: OSError, on all ranks, if the main one cannot write.
        """
        model = self._host_copy()

        def write() -> None:
            if isinstance(model, ScalarModel):
                model.save(directory, tokenizer)
            elif model is not None:
                model.save_pretrained(directory)
                tokenizer.save_pretrained(directory)

        self.ranks.together(write)

    def save_state(self, directory: Path) -> None:
        """Writes trained parameters, moments and step counts: all that the next step needs. Every rank must call it.

        Raises: OSError, on all ranks, if one cannot write.
        """
        write_state(directory, self.optimizer, self.ranks, frozen_digest=self._frozen_digest)

    def load_state(self, directory: Path) -> None:
        """Goes on from what save_state wrote, on this or another number of ranks. Every rank must call it.

        The module must have been made from the files that the run began with: with `lora`, only the adapters and heads
        are in the state. Raises: ConfigError if the state is of another model.
        """
        reshard(self.module)
        try:
            read_state(directory, self.optimizer, self.ranks, frozen_digest=self._frozen_digest)
        except ValueError as error:
            raise ConfigError(f"{directory}: {error}; resume with the models that the run began with") from None

    def _whole_layers(self, transformer: PreTrainedModel) -> Iterator[dict[str, Tensor]]:
        """Yields the transformer's own tensors whole, by layer, with its adapters merged and tied tensors left out."""
        tied = transformer.all_tied_weights_keys
        own = {name: tensor for name, tensor in transformer.state_dict().items() if name not in tied}
        for layer in gather_by_layer(own, self.dtype):
            yield layer if self._lora_scale is None else merge_adapters(layer, self._lora_scale)

    def _whole_head(self) -> dict[str, Tensor]:
        """Returns a ScalarModel's head, whole, by its own names; nothing for other modules."""
        if not isinstance(self.module, ScalarModel):
            return {}
        (head,) = gather_by_layer(self.module.head.state_dict(), self.dtype)
        return head

    def _host_copy(self) -> PreTrainedModel | ScalarModel | None:
        """Returns the model as it is served, whole; None on all ranks but the main one.

        A model without shards and adapters is returned itself; of any other a copy on the CPU.
        """
        transformer = _transformer(self.module)
        if self.ranks.world_size == 1 and self._lora_scale is None:
            return self.module if isinstance(self.module, ScalarModel) else transformer
        tensors: dict[str, Tensor] = {}
        for layer in self._whole_layers(transformer):
            if self.ranks.is_main:
                tensors |= {name: tensor.cpu() for name, tensor in layer.items()}
        head = self._whole_head()
        if not self.ranks.is_main:
            return None
        if isinstance(self.module, ScalarModel):
            linear = nn.Linear(self.module.head.in_features, 1, bias=False, device="meta")
            linear.load_state_dict({name: tensor.cpu() for name, tensor in head.items()}, assign=True)
            backbone = _assemble(AutoModel, transformer, tensors)
            return ScalarModel(backbone, linear, mean=self.module.mean, std=self.module.std)
        return _assemble(AutoModelForCausalLM, transformer, tensors)


def _assemble(auto: Any, like: PreTrainedModel, tensors: Mapping[str, Tensor]) -> PreTrainedModel:
    """Returns a model of the same configuration that has the tensors for its own; for those tied to others, theirs."""
    with torch.device("meta"):
        model = auto.from_config(copy.deepcopy(like.config))
    missing = model.load_state_dict(tensors, strict=False, assign=True).missing_keys
    if lost := set(missing) - model.all_tied_weights_keys.keys():
        raise RuntimeError(f"the weights that were gathered lack {min(lost)}")
    model.tie_weights()
    if hasattr(like, "generation_config"):
        model.generation_config = like.generation_config
    return model


def _transformer(module: nn.Module) -> PreTrainedModel:
    """Returns the transformers model that a module is or wraps."""
    if isinstance(module, PolicyModel):
        return module.model
    if isinstance(module, ScalarModel):
        return module.backbone
    if isinstance(module, PreTrainedModel):
        return module
    raise TypeError(f"{type(module).__name__} is no PreTrainedModel, PolicyModel or ScalarModel")


def _scalar_prefix(model: ScalarModel) -> str:
    """What a sequence-classification checkpoint puts before the names of the backbone."""
    with torch.device("meta"):
        classifier = AutoModelForSequenceClassification.from_config(model.backbone.config)
    return f"{classifier.base_model_prefix}."
