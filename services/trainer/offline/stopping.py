"""Signals that ask an offline training to end: once after its step, twice at once."""

import signal
import threading
from types import FrameType
from typing import Any, Self

NUMBERS = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """Notes the first SIGTERM or SIGINT; a second one ends the process at once. Use as a context manager."""

    def __init__(self) -> None:
        self.requested = False
        """Whether the training was asked to end."""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        # Elsewhere Python lets nobody set a handler, and none of these signals arrives.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in NUMBERS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, _number: int, _frame: FrameType | None) -> None:
        self.requested = True
        for number in NUMBERS:
            signal.signal(number, signal.SIG_DFL)
