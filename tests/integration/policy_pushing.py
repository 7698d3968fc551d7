"""What tests of weight pushes share: a policy service, snapshots of weights, and raw streams that go wrong."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import torch

from rlhf.client.push_messages import push_messages
from rlhf.models.loading import load_policy
from rlhf.models.sparse_patch import diff
from rlhf.models.weights import checkpoint_tensors, load_tensors, tensor_bytes, tensor_info
from rlhf.weights import PatchPart, PushHeader, PushResult, WeightsManifest
from tests.integration.test_policy_service import Service

Weights = dict[str, torch.Tensor]

CHUNK_BYTES = 20_000
"""Small, so that a push of the tiny model has several."""


def weights_of(model: torch.nn.Module) -> Weights:
    """A copy of a model's checkpoint."""
    return {name: tensor.clone() for name, tensor in checkpoint_tensors(model)}


def manifest_of(weights: Weights) -> WeightsManifest:
    return WeightsManifest(tuple(tensor_info(name, tensor) for name, tensor in weights.items()))


def model_with(path: Path, weights: Weights) -> torch.nn.Module:
    """A model of the kind in a folder, with these weights."""
    model = load_policy(path, dtype="float32")
    load_tensors(model, weights.items())
    return model


def changed(weights: Weights, fraction: float, seed: int) -> Weights:
    """The weights with a fraction of their elements, drawn at random, moved."""
    generator = torch.Generator().manual_seed(seed)
    after = {}
    for name, tensor in weights.items():
        moved = torch.rand(tensor.shape, generator=generator) < fraction
        after[name] = torch.where(moved, tensor + torch.randn(tensor.shape, generator=generator) * 0.1, tensor)
    return after


class Push:
    """A push of weights: whole, or the patch from others."""

    def __init__(self, version: int, weights: Weights, base: tuple[int, Weights] | None = None) -> None:
        self.header = PushHeader.full(version, manifest_of(weights))
        self.payload: list[bytes | memoryview] = [tensor_bytes(tensor) for tensor in weights.values()]
        if base is not None:
            base_version, old = base
            patches = [diff(old[name], tensor) for name, tensor in weights.items()]
            self.payload = [patch.frame for patch in patches if patch.changed_count]
            self.header = replace(
                self.header,
                encoding="sparse_patch",
                base_policy_version=base_version,
                base_weights_digest=manifest_of(old).digest,
                parts=tuple(PatchPart(patch.changed_count, len(patch.frame)) for patch in patches),
            )

    async def to(self, service: Service) -> PushResult:
        return await service.client.update_weights(self.header, self.payload, deadline_seconds=30)

    def messages(self) -> list[bytes]:
        """Header, chunks and commit, serialised."""
        return self.messages_of(self.payload)

    def messages_of(self, payload: Iterable[bytes | memoryview]) -> list[bytes]:
        """The same with another payload."""
        return list(push_messages(self.header, payload, CHUNK_BYTES))


async def send(target: str, messages: Iterable[bytes], *, hang: bool = False) -> None:
    """Sends messages as the stream of one push; with `hang` it stays open after them. Raises: AioRpcError."""

    async def stream() -> AsyncIterator[bytes]:
        for message in messages:
            yield message
        if hang:
            await asyncio.sleep(60)

    async with grpc.aio.insecure_channel(target) as channel:
        await channel.stream_unary("/rlhf.v1.PolicyService/UpdateWeights")(stream(), timeout=20)


def flipped(payload: Iterable[bytes | memoryview], at: int) -> Iterator[bytes]:
    """The payload with one bit flipped."""
    data = bytearray(b"".join(payload))
    data[at] ^= 1
    yield bytes(data)
