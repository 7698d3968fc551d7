"""How much of the time replicas had nothing to sample."""

import time
from collections.abc import Callable

from services.trainer.fleet.fleet import Fleet


class IdleClock:
    """Adds up, for the replicas that can be reached, the time in which nothing was asked of them."""

    def __init__(self, fleet: Fleet, now: Callable[[], float] = time.monotonic) -> None:
        """Args: the replicas; a clock in seconds."""
        self._fleet = fleet
        self._now = now
        self._last = now()
        self._idle_seconds = self._seconds = 0.0

    def tick(self) -> None:
        """Adds the time since the last tick; call it before what a replica has to do changes."""
        now = self._now()
        passed, self._last = now - self._last, now
        present = [each for each in self._fleet.replicas.values() if each.state in ("joining", "ready")]
        self._seconds += passed * len(present)
        self._idle_seconds += passed * sum(each.outstanding <= 0 for each in present)

    def read(self) -> float:
        """Returns the idle share of the time since the last reading; 0 if there was none."""
        self.tick()
        fraction = self._idle_seconds / self._seconds if self._seconds else 0.0
        self._idle_seconds = self._seconds = 0.0
        return fraction
