"""Sparse patches: the exact new bits of a tensor's changed elements, as policy.proto's WEIGHTS_ENCODING_SPARSE_PATCH.

The sender calls diff(); the receiver calls decode(), then new_values() on the elements at its indices.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import zstandard
from numpy.typing import NDArray
from torch import Tensor

from rlhf.errors import InvalidRequestError
from rlhf.weights import BYTES_PER_ELEMENT, PatchPart

MAX_ELEMENTS = 2**32
"""Largest tensor that can be patched: a gap between indices is a uint32."""
BLOCK_ELEMENTS = 2**18
"""Elements compared at a time; both blocks fit in a core's cache."""
COMPRESSION_LEVEL = 1
GAP_BYTES = 4

_SIGNED = MappingProxyType({2: torch.int16, 4: torch.int32})
"""The integers that hold an element's bits, by its size in bytes."""


@dataclass(frozen=True, slots=True)
class TensorPatch:
    """What changed in one tensor."""

    changed_count: int
    """Elements whose bits differ."""
    frame: bytes
    """The zstd frame; empty if nothing changed."""

    @property
    def part(self) -> PatchPart:
        """The patch's entry in the header of a push."""
        return PatchPart(self.changed_count, len(self.frame))


def diff(old: Tensor, new: Tensor) -> TensorPatch:
    """Returns the patch that turns `old` into `new`.

    Bits are compared, not values: from 0.0 to -0.0 is a change, and so is from one NaN to another. Memory grows with
    the number of changed elements.

    Args:
        old, new: contiguous CPU tensors of the same shape and type, one of rlhf.weights.BYTES_PER_ELEMENT.
    Raises: ValueError if the tensors have more than MAX_ELEMENTS.
    """
    if old.numel() > MAX_ELEMENTS:
        raise ValueError(f"a tensor of {old.numel()} elements cannot be patched; the most are {MAX_ELEMENTS}")
    old_bits, new_bits = _bits(old), _bits(new)
    indices = _changed_indices(old_bits, new_bits)
    if not len(indices):
        return TensorPatch(0, b"")
    gaps = (np.diff(indices, prepend=-1) - 1).astype(np.uint32)
    steps = new_bits[indices] - old_bits[indices]
    zigzag = (steps << 1) ^ (steps >> (8 * steps.itemsize - 1))
    planes = np.concatenate([*_planes(gaps, GAP_BYTES), *_planes(zigzag, steps.itemsize)])
    return TensorPatch(len(indices), zstandard.ZstdCompressor(level=COMPRESSION_LEVEL).compress(planes.data))


def decode(part: PatchPart, frame: bytes | memoryview, dtype: str, numel: int, *, name: str) -> tuple[Tensor, Tensor]:
    """Returns the flat indices of the changed elements, ascending, int64, and their steps for new_values().

    Args:
        part: the tensor's entry in the header.
        frame: its bytes of the payload.
        dtype: the tensor's type, a key of rlhf.weights.BYTES_PER_ELEMENT.
        numel: its number of elements; no memory is allocated for more changes than that.
        name: the tensor's name, for errors.
    Raises: InvalidRequestError if the frame is not a valid patch of such a tensor with the announced changes.
    """
    width = BYTES_PER_ELEMENT[dtype]
    count = part.changed_count
    _check_part(part, frame, numel, name)
    planes = _decompressed(frame, count * (GAP_BYTES + width), name).reshape(GAP_BYTES + width, count)
    gaps = _from_planes(planes[:GAP_BYTES], np.dtype(np.int64))
    zigzag = _from_planes(planes[GAP_BYTES:], np.dtype(f"u{width}"))
    gaps += 1
    indices = np.cumsum(gaps, out=gaps)
    indices -= 1
    # At most 2^32 gaps of at most 2^32: a sum that overflows is negative.
    if count and not 0 <= indices[-1] < numel:
        raise _invalid(name, f"changes elements past its end; it has {numel}")
    if not zigzag.all():
        raise _invalid(name, "has a step of 0; only changed elements belong in a patch")
    steps = (zigzag >> 1) ^ -(zigzag & 1)
    return torch.from_numpy(indices), torch.from_numpy(steps.view(f"i{width}"))


def new_values(old_values: Tensor, steps: Tensor) -> Tensor:
    """Returns the new elements in their own type. `old_values` are those at decode()'s indices, in that order."""
    return (old_values.view(steps.dtype) + steps).view(old_values.dtype)


def _bits(tensor: Tensor) -> NDArray[Any]:
    bits: NDArray[Any] = tensor.detach().reshape(-1).view(_SIGNED[tensor.element_size()]).numpy()
    return bits


def _changed_indices(old: NDArray[Any], new: NDArray[Any]) -> NDArray[np.int64]:
    found = [np.zeros(0, np.int64)]
    for start in range(0, len(new), BLOCK_ELEMENTS):
        block = slice(start, start + BLOCK_ELEMENTS)
        changed = np.flatnonzero(old[block] != new[block])
        if len(changed):
            found.append(changed + start)
    return np.concatenate(found)


def _planes(numbers: NDArray[Any], width: int) -> Iterator[NDArray[np.uint8]]:
    """Yields the bytes of integers by significance, the least significant bytes of all of them first."""
    for plane in range(width):
        yield (numbers >> (8 * plane)).astype(np.uint8)


def _from_planes(planes: NDArray[np.uint8], dtype: np.dtype[Any]) -> NDArray[Any]:
    numbers: NDArray[Any] = planes[0].astype(dtype)
    for index, plane in enumerate(planes[1:], start=1):
        if plane.any():
            numbers |= plane.astype(dtype) << dtype.type(8 * index)
    return numbers


def _check_part(part: PatchPart, frame: bytes | memoryview, numel: int, name: str) -> None:
    if numel > MAX_ELEMENTS:
        raise _invalid(name, f"has {numel} elements; at most {MAX_ELEMENTS} can be patched: push all weights")
    if not 0 <= part.changed_count <= numel:
        raise _invalid(name, f"has a changed_count of {part.changed_count}; it has {numel} elements")
    if (part.changed_count == 0) != (part.num_bytes == 0):
        raise _invalid(name, f"has {part.changed_count} changes in {part.num_bytes} bytes; both are 0 or neither is")
    if len(frame) != part.num_bytes:
        raise _invalid(name, f"has a frame of {len(frame)} bytes; patch_bytes says {part.num_bytes}")


def _decompressed(frame: bytes | memoryview, size: int, name: str) -> NDArray[np.uint8]:
    """Returns the decompressed frame. Memory is allocated only if the frame declares `size` bytes."""
    if not size:
        return np.zeros(0, np.uint8)
    try:
        said = zstandard.frame_content_size(frame)
        if said not in (size, -1):  # -1: it does not say
            raise _invalid(name, f"has a frame of {said} bytes unpacked; its changed_count needs {size}")
        data = zstandard.ZstdDecompressor().decompress(frame, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise _invalid(name, f"has a frame that zstd does not unpack to {size} bytes ({error})") from None
    if len(data) != size:
        raise _invalid(name, f"has a frame of {len(data)} bytes unpacked; its changed_count needs {size}")
    return np.frombuffer(data, np.uint8)


def _invalid(name: str, fault: str) -> InvalidRequestError:
    return InvalidRequestError(f"the patch of tensor '{name}' {fault}")
