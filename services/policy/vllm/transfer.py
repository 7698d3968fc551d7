"""The last leg of a weight push, in vLLM's worker processes: from the staged file into the running model."""

from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from rlhf.models.weights import map_tensors
from services.policy.vllm.views import View, record_views, storages

AS_IN_CHECKPOINT = ("UnquantizedLinearMethod", "UnquantizedEmbeddingMethod", "NoneType")
"""Types of a module's quant_method that leave its parameters as the loader wrote them; others may lay them out anew."""


@dataclass
class InitInfo(WeightTransferInitInfo):  # type: ignore[misc]  # vLLM is untyped for mypy
    """Nothing is set up ahead of a push."""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):  # type: ignore[misc]
    """Where the staged weights lie, and what of them is new. Plain types only: it crosses two process borders."""

    path: str
    num_bytes: int
    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]
    offsets: list[int]
    patch: dict[str, Any] | None = None
    """The fields of PatchInfo; None: all of it is new."""


@dataclass
class PatchInfo:
    """Where the elements that changed lie: lists with one item for each tensor that has some."""

    path: str
    num_bytes: int
    names: list[str]
    dtypes: list[str]
    counts: list[int]
    index_offsets: list[int]
    value_offsets: list[int]

    def changes(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yields the name, the flat indices and the new values of each tensor, in place."""
        if not self.names:
            return
        shapes = [[count] for count in self.counts]
        indices = map_tensors(self.path, self.num_bytes, ["I64"] * len(shapes), shapes, self.index_offsets)
        values = map_tensors(self.path, self.num_bytes, self.dtypes, shapes, self.value_offsets)
        yield from zip(self.names, indices, values, strict=True)


class StagedWeightTransferEngine(WeightTransferEngine):  # type: ignore[misc]
    """Loads a staged checkpoint, or what is new in it, into the live model, so that the next step computes with it.

    A push is one update_weights call that does all of the work: vLLM ends the round by itself if that call fails, so
    the next push can start afresh.
    """

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo
    supports_draft_weight_update = False
    _views: dict[str, tuple[View, ...]]
    _views_of: tuple[int, ...] = ()
    """Addresses of the parameters that _views are views of."""

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Does nothing."""

    def start_weight_update(self) -> None:
        """Does nothing."""

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Loads the weights and rebuilds whatever the engine derives from them."""
        if self.device.type == "cpu" and self.model_config.use_mla:
            raise NotImplementedError("vLLM derives weights from kv_b_proj on a CPU, which a push cannot rebuild")
        tensors = map_tensors(
            update_info.path, update_info.num_bytes, update_info.dtypes, update_info.shapes, update_info.offsets
        )
        weights = list(zip(update_info.names, tensors, strict=True))
        if update_info.patch is not None:
            self._apply(PatchInfo(**update_info.patch), weights)
        elif self.device.type == "cpu":
            self._load(weights)
            self._repack()
        else:
            self._reload_layerwise(weights)

    def finish_weight_update(self) -> None:
        """Does nothing."""

    def shutdown(self) -> None:
        """Does nothing."""

    def _apply(self, patch: PatchInfo, weights: list[tuple[str, Tensor]]) -> None:
        """Writes what changed where it lives; a tensor that has no views is loaded whole. Not yet run on a GPU."""
        views = self._recorded_views(weights)
        whole = {name for name in patch.names if name not in views}
        if whole and self.device.type != "cpu":  # its graphs and derived weights want vLLM's own reload
            return self._reload_layerwise(weights)
        touched = set()
        for name, indices, values in patch.changes():
            for view in views.get(name, ()):
                view.write(indices, values)
                touched.add(view.live.untyped_storage().data_ptr())
        self._load((name, tensor) for name, tensor in weights if name in whole)
        if self.device.type == "cpu":
            self._repack(None if whole else touched)

    def _recorded_views(self, weights: list[tuple[str, Tensor]]) -> dict[str, tuple[View, ...]]:
        """Returns the views of the parameters as they are now: recorded anew if any of these has moved."""
        addresses = tuple(parameter.data_ptr() for parameter in self.model.parameters())
        if self._views_of != addresses:
            self._views_of = ()
            self._views = record_views(
                self.model.load_weights, weights, self._writable(), sharded=self.parallel_config.world_size > 1
            )
            self._views_of = addresses
        return self._views

    def _writable(self) -> Set[int]:
        """Returns the storages of the parameters that the model computes with as the loader wrote them."""
        if self.model_config.use_mla:  # it computes with products of them
            return set()
        return storages(
            parameter
            for module in self.model.modules()
            if type(getattr(module, "quant_method", None)).__name__ in AS_IN_CHECKPOINT
            for parameter in module.parameters(recurse=False)
        )

    def _load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        with torch.no_grad():
            self.model.load_weights(weights)

    def _repack(self, touched: Set[int] | None = None) -> None:
        """Rebuilds the packed copies that the CPU's linear layers compute with, a tied lm_head's included.

        Args:
            touched: storages of the parameters that have changed; None: all of them have.
        """
        for module in self.model.modules():
            if hasattr(module, "cpu_linear") and (touched is None or not touched.isdisjoint(_storages_of(module))):
                module.quant_method.process_weights_after_loading(module)

    def _reload_layerwise(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Loads on an accelerator, through vLLM's own reload: it keeps the addresses that captured graphs hold."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

        initialize_layerwise_reload(self.model)
        self._load(weights)
        finalize_layerwise_reload(self.model, self.model_config)


def _storages_of(module: torch.nn.Module) -> set[int]:
    return storages(module.parameters(recurse=False))
