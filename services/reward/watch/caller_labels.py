"""Names of callers that are fit for metrics: not more of them than a Prometheus can bear."""

import time
from collections.abc import Callable

MAX_CALLERS = 32
IDLE_SECONDS = 3600.0
OTHER = "other"
UNKNOWN = "unknown"


class CallerLabels:
    """Lets so many callers keep their names, and gives the rest one together; callers name themselves as they like."""

    def __init__(
        self,
        on_forget: Callable[[str], None] = lambda name: None,
        *,
        max_callers: int = MAX_CALLERS,
        idle_seconds: float = IDLE_SECONDS,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args: on_forget: told the name of a caller that has been idle so long that a new one gets its place."""
        self._on_forget = on_forget
        self._max_callers = max_callers
        self._idle_seconds = idle_seconds
        self._now = now
        self._last_seen: dict[str, float] = {}
        """The one that was seen last at the end."""

    def of(self, caller: str) -> str:
        """Returns the label of a caller; a nameless one is "unknown"."""
        name = caller or UNKNOWN
        now = self._now()
        if self._last_seen.pop(name, None) is None and len(self._last_seen) >= self._max_callers:
            idlest = next(iter(self._last_seen))
            if now - self._last_seen[idlest] < self._idle_seconds:
                return OTHER
            del self._last_seen[idlest]
            self._on_forget(idlest)
        self._last_seen[name] = now
        return name
