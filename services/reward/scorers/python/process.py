"""The other end of worker.py: starts the process, asks it with a deadline, and gets rid of it."""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from typing import Any

MAX_ANSWER_BYTES = 64 * 1024 * 1024


class WorkerTimeoutError(Exception):
    """The process did not answer in time. It is dead now."""


class WorkerEndedError(Exception):
    """The process ended, or said what makes no sense. It is dead now; the message says how it ended."""


class WorkerProcess:
    """A process of worker.py, in a session of its own."""

    def __init__(self) -> None:
        lifeline, self._lifeline = os.pipe()
        self._process = subprocess.Popen(
            # -P: what happens to lie in the working directory is not to be imported.
            [sys.executable, "-P", "-m", "services.reward.scorers.python.worker", str(lifeline)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[lifeline],
            start_new_session=True,
            bufsize=0,
        )
        os.close(lifeline)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        for pipe in (self._requests, self._answers):
            os.set_blocking(pipe.fileno(), False)

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def ask(self, request: dict[str, Any], timeout_seconds: float) -> dict[str, Any]:
        """Returns the answer. Raises: WorkerTimeoutError, WorkerEndedError."""
        deadline = time.monotonic() + timeout_seconds
        try:
            self._send(json.dumps(request).encode() + b"\n", deadline)
            line = self._receive(deadline)
        except BrokenPipeError:
            raise WorkerEndedError(self.kill()) from None
        except TimeoutError:
            self.kill()
            raise WorkerTimeoutError from None
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            self.kill()
            raise WorkerEndedError("it wrote into the pipe of the answers")
        return answer

    def kill(self) -> str:
        """Ends the process and its children; returns, in words, how the process ended."""
        if self._lifeline < 0:
            return "it was ended"
        # One that is about to end by itself has a moment for it, so that its exit code is known.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.05)
        ended_by_itself = self._process.returncode is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        code = self._process.wait()
        self._requests.close()
        self._answers.close()
        os.close(self._lifeline)
        self._lifeline = -1
        if not ended_by_itself:
            return "it was ended"
        return f"its process was killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def _send(self, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        while view:
            _wait(self._requests.fileno(), selectors.EVENT_WRITE, deadline)
            view = view[os.write(self._requests.fileno(), view) :]

    def _receive(self, deadline: float) -> bytes:
        data = bytearray()
        while not data.endswith(b"\n"):
            _wait(self._answers.fileno(), selectors.EVENT_READ, deadline)
            piece = os.read(self._answers.fileno(), 1 << 20)
            if not piece or len(data) > MAX_ANSWER_BYTES:
                raise BrokenPipeError
            data += piece
        return bytes(data)


def _wait(file: int, event: int, deadline: float) -> None:
    """Returns when the pipe is ready. Raises: TimeoutError."""
    with selectors.DefaultSelector() as selector:
        selector.register(file, event)
        if not selector.select(max(deadline - time.monotonic(), 0.0)):
            raise TimeoutError
