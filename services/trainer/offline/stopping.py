"""Signals that ask an offline training to end: once after its step, twice at once."""

import os
import signal
import threading
from types import FrameType
from typing import Any, Self

from services.trainer.service.signals import NUMBERS


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
