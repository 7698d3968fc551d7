"""SIGTERM and SIGINT to an online run: the first ends it after its step, the second ends the process at once."""

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

from services.trainer.service.control import RunControl

NUMBERS = (signal.SIGTERM, signal.SIGINT)
EXIT_CODE_BASE = 128
"""What shells and Kubernetes add a signal's number to: a Job then knows that the work is not done."""


class RunSignals:
    """What signals ask of a run. One for each process; made in its event loop."""

    def __init__(self, control: RunControl, say: Callable[[str], None], *, hurries: bool = True) -> None:
        """Listens at once, where Python lets it: in the main thread.

        Args:
            control: of the run that is stopped. say: told what a signal leads to.
            hurries: whether a second signal ends the process at once. Not on the ranks beside the main one: torchrun
                sends signals to all of them, and those must stay until the checkpoint is written.
        """
        self.received: signal.Signals | None = None
        """The first signal, if one came."""
        self._control, self._say, self._hurries = control, say, hurries
        self._arrived = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        if threading.current_thread() is threading.main_thread():
            for number in NUMBERS:
                asyncio.get_running_loop().add_signal_handler(number, self._note, number)

    @property
    def exit_code(self) -> int:
        """Of a process that the signal ended before its work was done; 0 without a signal."""
        return 0 if self.received is None else EXIT_CODE_BASE + self.received

    async def linger(self, seconds: float) -> None:
        """Returns after so many seconds, or with the signal; at once if it came before."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._arrived.wait(), seconds)

    def _note(self, number: signal.Signals) -> None:
        if self._hurries:
            for each in NUMBERS:
                asyncio.get_running_loop().remove_signal_handler(each)
                signal.signal(each, signal.SIG_DFL)
        self.received = self.received or number
        self._arrived.set()
        if not self._control.ended:
            self._say("stopping after this step; once more ends at once, with the last checkpoint kept")
            self._tasks.add(asyncio.create_task(self._control.stop()))


class StopSignal:
    """Notes the first SIGTERM or SIGINT; a second one ends the process at once. Use as a context manager."""

    def __init__(self, *, announce: bool = False) -> None:
        """Args: announce: say on stderr what the signal leads to."""
        self._announce = announce
        self.number = 0
        """Of the signal that asked the training to end; 0 if none did."""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        # Elsewhere Python lets nobody set a handler, and none of these signals arrives.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in NUMBERS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.number = number
        if self._announce:
            # print() and rich take locks that the interrupted code may hold.
            os.write(2, b"stopping after this step; once more ends at once, with the last checkpoint kept\n")
        for number in NUMBERS:
            signal.signal(number, signal.SIG_DFL)
