"""A process that trains or serves models: its memory, its threads, the exit of one rank of several, and its pod."""

import ctypes
import os
import sys
from pathlib import Path

# Parameters of glibc's mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8


def keep_freed_memory() -> None:
    """Makes this process keep the memory of freed tensors for new ones. Only on Linux with glibc; elsewhere no effect.

    By default every large tensor is mapped anew, and the kernel zeroes each page at the first touch, which takes a good
    part of a training step on a CPU. In exchange the process never gives memory back.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:  # musl has none
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, -1)
        # Arenas of other threads consist of 64 MiB heaps and return them, and torch works in a thread of its own.
        mallopt(_M_ARENA_MAX, 1)


def sleep_at_barriers() -> None:
    """Makes the OpenMP threads of this process and its children sleep, not spin, while they wait for one another.

    A spinning thread takes its core from others that have work, threads of its own team included: with the services on
    the same 2 cores, sampling and forward passes are several times faster with sleeping threads. A value that the user
    set in OMP_WAIT_POLICY is kept. Call it before torch is imported, which reads the variable once.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def end_rank(exit_code: int) -> int:
    """Returns the exit code if the process runs alone; as one of several ranks, ends the process with it.

    A thread of gloo may still hold a tensor of the last collective. Releasing it while Python shuts down aborts the
    process (std::terminate), and a rank that has finished would look as if it had failed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    return exit_code


TOKEN_FOLDER = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""What Kubernetes gives a pod to log in with."""


def is_in_pod() -> bool:
    """Returns whether this process runs in a pod with a token of its service account, by which it may log in."""
    return "KUBERNETES_SERVICE_HOST" in os.environ and (TOKEN_FOLDER / "token").is_file()


def pod_namespace() -> str:
    """Returns the namespace of the pod. Raises: OSError if this process runs in none."""
    return (TOKEN_FOLDER / "namespace").read_text().strip()
