"""An Engine whose behaviour each test chooses: no model, no threads."""

import asyncio
import struct
from pathlib import Path

from rlhf.weights import TensorInfo, WeightsManifest, tensor_digest
from services.policy.engine import Completion, EngineInfo, SampleParams
from services.policy.weights.staged import StagedPatch, StagedWeights


def manifest_of(tensors: dict[str, bytes]) -> WeightsManifest:
    """A manifest of one-dimensional float32 tensors."""
    return WeightsManifest(
        tuple(TensorInfo(name, "F32", (len(data) // 4,), tensor_digest(data)) for name, data in tensors.items())
    )


LOADED = {"b": b"\x00" * 8, "a": b"\x01" * 12}
INFO = EngineInfo(
    name="fake",
    tokenizer_digest="tok",
    vocab_size=100,
    max_sequence_tokens=16,
    stop_ids=(2,),
    dtype="F32",
    manifest=manifest_of(LOADED),
)


def read_staged(staged: StagedWeights) -> dict[str, bytes]:
    """The bytes of each tensor in a staged file."""
    data = Path(staged.path).read_bytes()
    tensors = zip(staged.manifest.tensors, staged.offsets, strict=True)
    return {info.name: data[offset : offset + info.num_bytes] for info, offset in tensors}


def read_patch(staged: StagedPatch) -> dict[str, tuple[list[int], list[float]]]:
    """The flat indices and new values of each changed float32 tensor in a staged patch."""
    data = Path(staged.path).read_bytes()
    return {
        each.info.name: (
            list(struct.unpack_from(f"<{each.num_changed}q", data, each.index_offset)),
            list(struct.unpack_from(f"<{each.num_changed}f", data, each.value_offset)),
        )
        for each in staged.tensors
    }


class FakeEngine:
    """Implements engine.Engine. Completes a prompt with its own ids, once `gate` is open; counts what it is asked."""

    info = INFO

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: Exception | None = None
        self.params: list[SampleParams] = []
        self.request_ids: list[str] = []
        self.running = 0
        self.swaps: list[dict[str, bytes]] = []
        self.patches: list[dict[str, tuple[list[int], list[float]]]] = []
        self.swap_gate = asyncio.Event()
        self.swap_gate.set()

    async def start(self) -> None:
        pass

    async def generate(self, prompt_ids: list[int], params: SampleParams, request_id: str) -> Completion:
        self.params.append(params)
        self.request_ids.append(request_id)
        self.running += 1
        try:
            await self.gate.wait()
        finally:
            self.running -= 1
        if self.error is not None:
            raise self.error
        num_tokens = len(prompt_ids)
        return Completion(
            completion_ids=prompt_ids,
            logprobs=[-0.5] * num_tokens,
            policy_versions=[0] * num_tokens,
            finish_reason="length",
        )

    async def update_weights(self, staged: StagedWeights | StagedPatch) -> float:
        await self.swap_gate.wait()
        if self.error is not None:
            raise self.error
        if isinstance(staged, StagedPatch):
            self.patches.append(read_patch(staged))
            staged = staged.whole
        self.swaps.append(read_staged(staged))
        return 0.25

    async def check(self) -> None:
        pass

    async def close(self) -> None:
        pass
