"""Where pushed weights wait, outside the engine, until they are known to be whole and right.

The bytes go to an anonymous file in memory (memfd). The engine's workers open it through /proc and map it, so a push is
copied once however many workers there are, and nothing can be left behind: the file ends with the last process that
holds it. Every tensor starts at a multiple of ALIGNMENT, which lets a worker view it in place.
"""

import os
import time
from dataclasses import dataclass, field

from blake3 import blake3

from rlhf_services.common.errors import InvalidRequestError
from rlhf_services.common.weights import TensorInfo, WeightsManifest

ALIGNMENT = 64
"""Bytes: a cache line, and more than any element type needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedWeights:
    """A whole, verified set of weights. Valid until the stage that made it is closed."""

    policy_version: int
    manifest: WeightsManifest
    path: str
    """File with the tensors; opens in any process of the same user."""
    num_bytes: int
    """Size of the file, gaps for alignment included."""
    offsets: tuple[int, ...]
    """Where each tensor of the manifest begins in the file, in bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchedTensor:
    """Where the changes of one tensor lie in a staged patch."""

    info: TensorInfo
    """The tensor as it is after the patch."""
    num_changed: int
    """At least 1."""
    index_offset: int
    """Of the flat indices of the changed elements in the file, in bytes: int64, rising."""
    value_offset: int
    """Of their new values in the file, in bytes, of the tensor's type."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedPatch:
    """A whole, verified set of changes to the weights that are served. Valid until the push has ended."""

    policy_version: int
    path: str
    """File with indices and values; opens in any process of the same user."""
    num_bytes: int
    """Size of the file; 0 if nothing changes but the version."""
    tensors: tuple[PatchedTensor, ...]
    """Those that change."""
    whole: StagedWeights
    """All weights as they are after the patch, for an engine that cannot apply it, or has done so by half."""


@dataclass(slots=True)
class WeightStage:
    """Receives the payload of one push, in order, hashing each tensor as its bytes pass."""

    manifest: WeightsManifest
    """What the payload must turn out to be; checked against the engine's already (check_manifest)."""
    verify_seconds: float = field(default=0.0, init=False)
    """Time spent hashing so far."""
    _offsets: tuple[int, ...] = field(init=False)
    _num_bytes: int = field(init=False)
    _fd: int = field(init=False)
    _received: int = field(default=0, init=False)
    _tensor: int = field(default=0, init=False)
    _tensor_received: int = field(default=0, init=False)
    _hasher: blake3 = field(default_factory=blake3, init=False)

    def __post_init__(self) -> None:
        self._offsets, self._num_bytes = aligned_offsets(self.manifest.tensors)
        self._fd = os.memfd_create("rlhf-weights", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, self._num_bytes)

    def write(self, offset_bytes: int, data: bytes) -> None:
        """Takes the next piece of the payload.

        Args:
            offset_bytes: where in the payload (which has no gaps) the piece begins.
            data: at least one byte; may end and begin inside a tensor.
        Raises: InvalidRequestError if the piece is empty, out of order or too long, or completes a tensor whose digest
            is not the announced one.
        """
        if not data:
            raise InvalidRequestError(f"chunk.data at offset_bytes {offset_bytes} is empty; send at least one byte")
        if offset_bytes != self._received:
            raise InvalidRequestError(
                f"chunk.offset_bytes is {offset_bytes}, expected {self._received}; send chunks in order, without gaps"
            )
        if self._received + len(data) > self.manifest.num_bytes:
            raise InvalidRequestError(
                f"the payload has more than the {self.manifest.num_bytes} bytes of the header's tensors; "
                "send exactly those"
            )
        piece = memoryview(data)
        while piece:
            piece = piece[self._write_to_tensor(piece) :]

    def commit(self, policy_version: int) -> StagedWeights:
        """Returns the weights. Raises InvalidRequestError if bytes are missing."""
        if self._received != self.manifest.num_bytes:
            raise InvalidRequestError(
                f"the commit came after {self._received} of {self.manifest.num_bytes} bytes, inside tensor "
                f"'{self.manifest.tensors[self._tensor].name}'; send the whole payload first"
            )
        return StagedWeights(
            policy_version=policy_version,
            manifest=self.manifest,
            path=f"/proc/{os.getpid()}/fd/{self._fd}",
            num_bytes=self._num_bytes,
            offsets=self._offsets,
        )

    def close(self) -> None:
        """Frees the memory. May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write_to_tensor(self, piece: memoryview) -> int:
        """Writes what of the piece belongs to the present tensor; returns how many bytes that was."""
        info = self.manifest.tensors[self._tensor]
        part = piece[: info.num_bytes - self._tensor_received]
        _write_all(self._fd, part, self._offsets[self._tensor] + self._tensor_received)
        started = time.perf_counter()
        self._hasher.update(part)
        self.verify_seconds += time.perf_counter() - started
        self._tensor_received += len(part)
        self._received += len(part)
        if self._tensor_received == info.num_bytes:
            self._complete(info)
        return len(part)

    def _complete(self, info: TensorInfo) -> None:
        digest = self._hasher.hexdigest()
        if digest != info.digest:
            raise InvalidRequestError(
                f"tensor '{info.name}' arrived with digest {digest}, the header says {info.digest}; "
                "it was corrupted on the way or hashed wrongly: push again"
            )
        self._tensor += 1
        self._tensor_received = 0
        self._hasher = blake3()


def aligned_offsets(tensors: tuple[TensorInfo, ...]) -> tuple[tuple[int, ...], int]:
    """Returns where each tensor begins in the staged file, and the file's size, in bytes."""
    offsets = []
    end = 0
    for info in tensors:
        begin = -(-end // ALIGNMENT) * ALIGNMENT
        offsets.append(begin)
        end = begin + info.num_bytes
    return tuple(offsets), end


def check_manifest(pushed: WeightsManifest, served: WeightsManifest, weights_digest: str) -> None:
    """Checks that a push would bring exactly the tensors that the engine serves.

    Args:
        pushed: what the header announces; the order of its tensors is free.
        served: what the engine loaded.
        weights_digest: of the whole, as the header says.
    Raises: InvalidRequestError naming the first tensor that is double, extra, missing, misshapen or of another dtype.
    """
    if len(pushed.by_name) != len(pushed.tensors):
        names = [info.name for info in pushed.tensors]
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidRequestError(f"tensors names '{twice}' twice; send each tensor once")
    for info in pushed.tensors:
        expected = served.by_name.get(info.name)
        if expected is None:
            raise InvalidRequestError(
                f"tensors has '{info.name}', which the served model does not have; name exactly the model's tensors, "
                "tied ones once"
            )
        if (info.shape, info.dtype) != (expected.shape, expected.dtype):
            raise InvalidRequestError(
                f"tensor '{info.name}' is {info.dtype} {list(info.shape)}; "
                f"the served model has {expected.dtype} {list(expected.shape)} there"
            )
    missing = [info.name for info in served.tensors if info.name not in pushed.by_name]
    if missing:
        others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise InvalidRequestError(f"tensors lacks '{missing[0]}'{others}; a full push names every tensor of the model")
    if pushed.digest != weights_digest:
        raise InvalidRequestError(
            f"weights_digest is '{weights_digest}', the header's tensors give '{pushed.digest}'; "
            "compute it as policy.proto says"
        )


def _write_all(fd: int, data: memoryview, offset: int) -> None:
    while data:  # pwrite may write less than asked
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written
