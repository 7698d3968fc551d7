"""Processes of services on this machine: how they are started and ended, and what becomes of them at a signal."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from types import FrameType
from typing import NoReturn

# Runs in the child before the command itself, which inherits the request across exec. Popen's preexec_fn could make it
# too, but executes Python between fork and exec, which can deadlock where there are threads.
_LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)        # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]): sys.exit(1)  # the parent died before the request took effect
os.execvp(sys.argv[2], sys.argv[2:])
"""


def spawn(command: Sequence[str], environment: Mapping[str, str], output: int | None) -> subprocess.Popen[bytes]:
    """Returns the command as a process in a session of its own, so that Ctrl-C reaches it by the supervisor alone."""
    return subprocess.Popen(
        [sys.executable, "-c", _LAUNCHER, str(os.getpid()), *command],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )


def terminate(processes: Sequence[subprocess.Popen[bytes]], grace_seconds: float) -> None:
    """Asks processes to end; returns when they have or when the grace is over."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + grace_seconds
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(deadline - time.monotonic(), 0.0))


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kills what is left of a process and its descendants."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def describe_exit(exit_code: int) -> str:
    """Returns how a process ended, in words."""
    return f"killed by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exit code {exit_code}"


@contextlib.contextmanager
def interrupt_on_signals() -> Iterator[None]:
    """Lets SIGINT, SIGTERM and SIGHUP end this process through every `finally` and `with`.

    Raises: in the main thread, KeyboardInterrupt at SIGINT (also where it was ignored, as shells do for background
        jobs), SystemExit with 128 + the signal's number at the others.
    """

    def leave(signal_number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + signal_number)

    previous = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    previous[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
