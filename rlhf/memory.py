"""How the C library's allocator treats large tensors."""

import ctypes
import sys

# Parameters of glibc's mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8


def keep_freed_memory() -> None:
    """Makes this process keep the memory of freed tensors for the next ones, on Linux with glibc; elsewhere nothing.

    By default every large tensor is mapped anew, and the kernel zeroes each page at the first touch: a good part of a
    training step on a CPU. The process then stays as large as it ever was.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:  # musl has none
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, -1)
        # Arenas of other threads are made of 64 MiB heaps and give them back: torch works in a thread of its own.
        mallopt(_M_ARENA_MAX, 1)
