"""What a push is while it waits outside the engine: a Payload as it arrives, then StagedWeights or a StagedPatch.

The bytes lie in anonymous files in memory (memory_file.py), which the engine's workers open and map.
"""

from dataclasses import dataclass
from typing import Protocol

from rlhf.errors import InvalidRequestError
from rlhf.weights import TensorInfo, WeightsManifest


@dataclass(frozen=True, slots=True, kw_only=True)
class StagedWeights:
    """A whole, verified set of weights. Valid until the push has ended."""

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


class Payload(Protocol):
    """Takes the payload of one push, in order, and verifies it. Its methods may run in any thread, one at a time."""

    received: int
    """Bytes of the payload that have arrived."""
    verify_seconds: float
    """Time spent hashing so far."""

    def write(self, offset_bytes: int, data: bytes | memoryview) -> None:
        """Takes the next piece of the payload.

        Args:
            offset_bytes: where in the payload the piece begins.
            data: at least one byte; may end and begin anywhere.
        Raises: InvalidRequestError if the piece is empty, out of order or too long, or shows that the push is wrong.
        """

    def read(self, offset_bytes: int, num_bytes: int) -> bytes:
        """Returns a part of the payload, which must have arrived; at any time until the push has ended."""

    def commit(self, policy_version: int) -> StagedWeights | StagedPatch:
        """Returns what to give to the engine. Raises InvalidRequestError if the push is not whole."""


def check_piece(offset_bytes: int, num_bytes: int, received: int, expected: int) -> None:
    """Checks that a piece is the next one of a payload. Raises: InvalidRequestError.

    Args:
        offset_bytes, num_bytes: where it says that it begins, and its size.
        received, expected: bytes of the payload that are there, and that there will be.
    """
    if not num_bytes:
        raise InvalidRequestError(f"chunk.data at offset_bytes {offset_bytes} is empty; send at least one byte")
    if offset_bytes != received:
        raise InvalidRequestError(
            f"chunk.offset_bytes is {offset_bytes}, expected {received}; send chunks in order, without gaps"
        )
    if received + num_bytes > expected:
        raise InvalidRequestError(
            f"the payload has more than the {expected} bytes that the header announces; send exactly those"
        )


def check_digest(info: TensorInfo, digest: str) -> None:
    """Raises InvalidRequestError if a tensor that is here has another digest than the header says."""
    if digest != info.digest:
        raise InvalidRequestError(
            f"tensor '{info.name}' arrived with digest {digest}, the header says {info.digest}; "
            "it was corrupted on the way or hashed wrongly: push again"
        )
