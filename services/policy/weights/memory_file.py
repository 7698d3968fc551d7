"""Anonymous files in memory (memfd), and a whole checkpoint in one of them.

Any process of the same user opens such a file by its path and maps it, so what is in it is copied once however many
workers there are, and nothing can be left behind: it ends with the last process that holds it.
"""

import mmap
import os

import numpy as np

from rlhf.weights import TensorInfo, WeightsManifest
from services.policy.weights.staged import StagedWeights

ALIGNMENT = 64
"""Bytes: a cache line, and more than any element type needs."""


class MemoryFile:
    """A file in memory."""

    def __init__(self) -> None:
        """The file is empty."""
        self._fd = os.memfd_create("rlhf-weights", os.MFD_CLOEXEC)
        self.num_bytes = 0
        self._mapping: mmap.mmap | None = None

    @property
    def path(self) -> str:
        """Opens in any process of the same user."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    def resize(self, num_bytes: int) -> None:
        """Sets the size; memory that is there stays."""
        os.ftruncate(self._fd, num_bytes)
        self.num_bytes = num_bytes

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Writes all of the data there."""
        left = memoryview(data)
        while left:  # pwrite may write less than asked
            written = os.pwrite(self._fd, left, offset)
            left, offset = left[written:], offset + written

    def append(self, data: memoryview) -> int:
        """Writes the data at the next multiple of ALIGNMENT, and returns where that is."""
        offset = aligned(self.num_bytes)
        self.write(offset, data)
        self.num_bytes = offset + len(data)
        return offset

    def read(self, offset: int, num_bytes: int) -> bytes:
        """Returns what is there."""
        return os.pread(self._fd, num_bytes, offset)

    def map(self) -> mmap.mmap:
        """Returns the file's memory, to be read and written; it outlives close()."""
        if self._mapping is None or len(self._mapping) != self.num_bytes:
            self._mapping = mmap.mmap(self._fd, self.num_bytes)
        return self._mapping

    def close(self) -> None:
        """Frees the memory, once nobody else holds it. May be called twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class WeightsFile(MemoryFile):
    """A set of weights in memory, each tensor at a multiple of ALIGNMENT: a worker views it in place."""

    def __init__(self) -> None:
        """There is no tensor yet."""
        super().__init__()
        self.manifest = WeightsManifest(())
        self.offsets: tuple[int, ...] = ()

    def arrange(self, manifest: WeightsManifest) -> None:
        """Makes room for these tensors. What was in the file before is void, but its memory is used again."""
        self.manifest = manifest
        self.offsets, num_bytes = aligned_offsets(manifest.tensors)
        self.resize(num_bytes)

    def put(self, offset: int, data: memoryview) -> None:
        """Writes a part of a tensor where arrange() made room for it; other threads run meanwhile."""
        memory = np.frombuffer(self.map(), np.uint8)
        np.copyto(memory[offset : offset + len(data)], np.frombuffer(data, np.uint8))

    def add(self, info: TensorInfo, data: memoryview) -> None:
        """Adds a tensor behind those that are there."""
        self.offsets = (*self.offsets, self.append(data))
        self.manifest = WeightsManifest((*self.manifest.tensors, info))

    def staged(self, policy_version: int) -> StagedWeights:
        """Returns what an engine needs to load the file."""
        return StagedWeights(
            policy_version=policy_version,
            manifest=self.manifest,
            path=self.path,
            num_bytes=self.num_bytes,
            offsets=self.offsets,
        )


def aligned(offset: int) -> int:
    """Returns the next multiple of ALIGNMENT."""
    return -(-offset // ALIGNMENT) * ALIGNMENT


def aligned_offsets(tensors: tuple[TensorInfo, ...]) -> tuple[tuple[int, ...], int]:
    """Returns where each tensor begins in a file of them, and the file's size, in bytes."""
    offsets = []
    end = 0
    for info in tensors:
        begin = aligned(end)
        offsets.append(begin)
        end = begin + info.num_bytes
    return tuple(offsets), end
