"""Manifests and digests of weights, and the header and the result of a push, as plain types."""

import math
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Literal

from blake3 import blake3

BYTES_PER_ELEMENT = MappingProxyType({"BF16": 2, "F16": 2, "F32": 4})
"""Element types that can be served, named as in safetensors."""


def tensor_digest(data: bytes | bytearray | memoryview) -> str:
    """Returns the hex BLAKE3 of a tensor's raw little-endian bytes."""
    return blake3(data, max_threads=blake3.AUTO).hexdigest()


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a checkpoint, under its name in the checkpoint."""

    name: str
    dtype: str
    """A key of BYTES_PER_ELEMENT."""
    shape: tuple[int, ...]
    digest: str
    """tensor_digest of its bytes."""

    @property
    def num_bytes(self) -> int:
        """Size of the tensor's data. Raises KeyError for an unknown dtype."""
        return math.prod(self.shape) * BYTES_PER_ELEMENT[self.dtype]


@dataclass(frozen=True)
class WeightsManifest:
    """All tensors of a checkpoint, in the order in which their bytes are sent."""

    tensors: tuple[TensorInfo, ...]

    @cached_property
    def digest(self) -> str:
        """Hex BLAKE3 of all tensors in any order, as policy.proto defines WeightsHeader.weights_digest."""
        lines = (
            f"{info.name} {info.dtype} {','.join(map(str, info.shape))} {info.digest}\n"
            for info in sorted(self.tensors, key=lambda info: info.name)
        )
        return blake3("".join(lines).encode()).hexdigest()

    @cached_property
    def num_bytes(self) -> int:
        """Size of all tensors' data."""
        return sum(info.num_bytes for info in self.tensors)

    @cached_property
    def by_name(self) -> dict[str, TensorInfo]:
        """The tensors by name."""
        return {info.name: info for info in self.tensors}


Encoding = Literal["full", "sparse_patch", "unspecified"]
"""How the payload encodes the weights, as policy.proto's WeightsEncoding."""


@dataclass(frozen=True, slots=True)
class PatchPart:
    """The part of a patch for one tensor."""

    changed_count: int
    """Elements whose bits changed."""
    num_bytes: int
    """Of its zstd frame; 0 if nothing changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PushHeader:
    """The header of a push, with the fields of WeightsHeader."""

    policy_version: int
    manifest: WeightsManifest
    """The weights after the push."""
    weights_digest: str
    encoding: Encoding = "full"
    base_policy_version: int = 0
    base_weights_digest: str = ""
    parts: tuple[PatchPart, ...] = ()
    """In a patch, one for each tensor of the manifest."""
    relay_targets: tuple[str, ...] = ()
    """Replicas that the receiver relays the push to: to the first of them, which relays it to the next."""

    @classmethod
    def full(cls, policy_version: int, manifest: WeightsManifest) -> "PushHeader":
        """Returns the header of a push of all weights."""
        return cls(policy_version=policy_version, manifest=manifest, weights_digest=manifest.digest)

    @property
    def payload_bytes(self) -> int:
        """Size of all chunks together."""
        if self.encoding == "sparse_patch":
            return sum(part.num_bytes for part in self.parts)
        return self.manifest.num_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayedPush:
    """The result of a push at a replica that received it from another replica."""

    target: str
    error: str = ""
    """Why it does not serve the weights; empty if it does."""
    policy_version: int = 0
    weights_digest: str = ""
    pause_seconds: float = 0.0
    stage_seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PushResult:
    """The result of a push after which the replica serves the weights."""

    policy_version: int
    weights_digest: str
    pause_seconds: float
    """Time without sampling; 0 if the replica had the weights already."""
    stage_seconds: float = 0.0
    """Time from the header until all weights were received and verified."""
    relayed: tuple[RelayedPush, ...] = ()
