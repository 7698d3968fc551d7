"""What a set of weights consists of, and its digest: the identity that trainer, policy and reference agree on."""

import math
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

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
    """All tensors of a checkpoint, in the order in which their bytes travel."""

    tensors: tuple[TensorInfo, ...]

    @cached_property
    def digest(self) -> str:
        """Hex BLAKE3 of the whole, as policy.proto defines WeightsHeader.weights_digest. The order does not matter."""
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
