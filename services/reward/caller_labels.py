"""Names of callers that are fit for metrics: not more of them than a Prometheus can bear."""

MAX_CALLERS = 32
OTHER = "other"
UNKNOWN = "unknown"


class CallerLabels:
    """Gives the first callers their names and all later ones one together; callers name themselves as they like."""

    def __init__(self, max_callers: int = MAX_CALLERS) -> None:
        self._max_callers = max_callers
        self._known: set[str] = set()

    def of(self, caller: str) -> str:
        """Returns the label of a caller; a nameless one is "unknown"."""
        name = caller or UNKNOWN
        if name not in self._known:
            if len(self._known) >= self._max_callers:
                return OTHER
            self._known.add(name)
        return name
