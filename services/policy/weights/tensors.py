"""Views of staged weights as tensors, in whichever process the model lives in. Imports torch alone."""

import mmap
import os
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "I64": torch.int64}
"""Element types by their name in a manifest, and that of a staged patch's indices."""


def map_tensors(
    path: str, num_bytes: int, dtypes: Sequence[str], shapes: Sequence[Sequence[int]], offsets: Sequence[int]
) -> list[Tensor]:
    """Returns CPU tensors that view a staged file in place; they keep the mapping alive.

    Args:
        path: the staged file (StagedWeights.path).
        num_bytes: its size.
        dtypes, shapes, offsets: one of each per tensor; dtypes are keys of DTYPES, offsets in bytes.
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        # A private mapping counts as writable, which torch asks for, and never writes through to the file.
        mapping = mmap.mmap(fd, num_bytes, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    finally:
        os.close(fd)
    return [
        view_tensor(mapping, dtype, shape, offset) for dtype, shape, offset in zip(dtypes, shapes, offsets, strict=True)
    ]


def view_tensor(mapping: mmap.mmap, dtype: str, shape: Sequence[int], offset: int) -> Tensor:
    """Returns a tensor that views mapped memory in place; it keeps the mapping alive."""
    if not prod(shape):
        return torch.empty(*shape, dtype=DTYPES[dtype])
    return torch.frombuffer(mapping, dtype=DTYPES[dtype], count=prod(shape), offset=offset).view(*shape)
