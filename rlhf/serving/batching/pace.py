"""How fast work goes, and when to come again where there is too much of it."""

UNMEASURED_RETRY_SECONDS = 1.0
"""When to come again, as long as nothing was measured."""

MIN_RETRY_SECONDS = 0.01

RETRY_ROUNDS = 4
"""Nobody is told to stay away for longer than so many times what the present queue takes."""


class Pace:
    """Tokens per second over the latest runs, and the times at which refused callers were told to come again."""

    KEPT = 0.9
    """What a run counts for when another has followed it."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0
        self._latest_retry = float("-inf")

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Counts a run."""
        self._tokens = self.KEPT * self._tokens + num_tokens
        self._seconds = self.KEPT * self._seconds + seconds

    def seconds_for(self, num_tokens: float) -> float | None:
        """How long so many tokens will take; None before anything was measured."""
        return num_tokens * self._seconds / self._tokens if self._tokens else None

    def retry_after(self, wanted_tokens: float, queue_tokens: int, now: float) -> float:
        """In how many seconds one who is refused should come again: one after the other, as fast as room is made.

        So the refused do not come back all at once, to be refused again, and the queue does not run dry either.

        Args:
            wanted_tokens: about what the caller brings.
            queue_tokens: what waits.
            now: seconds of a clock that only goes forward.
        """
        wanted, whole = self.seconds_for(wanted_tokens), self.seconds_for(queue_tokens)
        if wanted is None or whole is None:
            return UNMEASURED_RETRY_SECONDS
        retry = min(max(self._latest_retry, now) + wanted, now + RETRY_ROUNDS * whole)
        self._latest_retry = retry
        return max(MIN_RETRY_SECONDS, retry - now)
