"""How the C library's allocator treats large tensors."""

import ctypes
import os
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


def sleep_at_barriers() -> None:
    """Makes the OpenMP threads of this process and its children sleep, not spin, while they wait for one another.

    A thread that spins starves whoever else has work for its core, the other half of its own team included: with the
    services on the same 2 cores, sampling and forward passes are several times faster like this. What the user has set
    in OMP_WAIT_POLICY stays. To be called before torch is imported, which reads it once.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def end_rank(exit_code: int) -> int:
    """Returns the exit code where a process works alone; as one of several ranks it ends here, with that code.

    A thread of gloo may still hold a tensor of the last collective. Letting go of it while Python shuts down aborts the
    process (std::terminate), and a rank that has done its work would look as if it had failed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    return exit_code
