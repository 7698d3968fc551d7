"""The last leg of a weight push, in vLLM's worker processes: from the staged file into the running model."""

from dataclasses import dataclass

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)

from rlhf_services.policy.weights.tensors import map_tensors


@dataclass
class InitInfo(WeightTransferInitInfo):  # type: ignore[misc]  # vLLM is untyped for mypy
    """Nothing is set up ahead of a push."""


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):  # type: ignore[misc]
    """Where the staged weights lie. Plain types only: it crosses two process borders."""

    path: str
    num_bytes: int
    names: list[str]
    dtypes: list[str]
    shapes: list[list[int]]
    offsets: list[int]


class StagedWeightTransferEngine(WeightTransferEngine):  # type: ignore[misc]
    """Loads a staged checkpoint into the live model, so that the next step computes with it.

    A push is one update_weights call that does all of the work: vLLM ends the round by itself if that call fails, so
    the next push can start afresh.
    """

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo
    supports_draft_weight_update = False

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Does nothing."""

    def start_weight_update(self) -> None:
        """Does nothing."""

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Loads the weights and rebuilds whatever the engine derives from them."""
        tensors = map_tensors(
            update_info.path, update_info.num_bytes, update_info.dtypes, update_info.shapes, update_info.offsets
        )
        weights = zip(update_info.names, tensors, strict=True)
        if self.device.type == "cpu":
            with torch.no_grad():
                self.model.load_weights(weights)
            self._repack()
        else:
            self._reload_layerwise(weights)

    def finish_weight_update(self) -> None:
        """Does nothing."""

    def shutdown(self) -> None:
        """Does nothing."""

    def _repack(self) -> None:
        """Rebuilds the packed copies that the CPU's linear layers compute with, a tied lm_head's included."""
        for module in self.model.modules():
            if hasattr(module, "cpu_linear"):
                module.quant_method.process_weights_after_loading(module)

    def _reload_layerwise(self, weights: "zip[tuple[str, torch.Tensor]]") -> None:
        """Loads on an accelerator, through vLLM's own reload: it keeps the addresses that captured graphs hold."""
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

        initialize_layerwise_reload(self.model)
        with torch.no_grad():
            self.model.load_weights(weights)
        finalize_layerwise_reload(self.model, self.model_config)
