"""How a call without side effects is made: behind a breaker, hedged, and again when the service says so."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from rlhf.client.breaker import CircuitBreaker
from rlhf.client.hedging import hedged
from rlhf.errors import OverloadedError

T = TypeVar("T")

MIN_PAUSE_SECONDS = 0.05
"""Before a call is repeated, whatever the service says."""

Try = Callable[[float], Awaitable[T]]
"""Makes the call once, with a deadline in seconds; its failure is a ServiceError."""


class Asking:
    """Makes calls that may be repeated, all of them to one place."""

    def __init__(
        self,
        place: str,
        *,
        wait_when_overloaded: bool,
        hedge_after_seconds: float | None,
        breaker: CircuitBreaker | None,
    ) -> None:
        """Args: place: for messages: "reward service at reward:50052". The others are those of RewardClient."""
        self._place = place
        self._wait_when_overloaded = wait_when_overloaded
        self._hedge_after_seconds = hedge_after_seconds
        self._breaker = breaker

    async def ask(self, first: Try[T], second: Try[T], deadline_seconds: float) -> T:
        """Returns the answer, asking again while the service is overloaded, says when to come back, and there is time.

        Args:
            first: makes the call.
            second: makes the same call over another connection, for a hedge.
            deadline_seconds: for all tries together.
        Raises: ServiceError.
        """
        deadline = time.monotonic() + deadline_seconds
        while True:
            try:
                return await self._try(first, second, deadline - time.monotonic())
            except OverloadedError as error:
                # Without a hint it is a limit that no waiting lifts, such as the size of a message.
                hint = error.retry_after_seconds
                if not self._wait_when_overloaded or hint is None:
                    raise
                pause = max(hint, MIN_PAUSE_SECONDS) * random.uniform(
                    1.0, 1.3
                )  # those who were refused together come back apart
                if time.monotonic() + pause >= deadline:
                    raise
            await asyncio.sleep(pause)

    async def _try(self, first: Try[T], second: Try[T], timeout: float) -> T:
        if self._breaker is None:
            return await self._hedge(first, second, timeout)
        with self._breaker.guarding(self._place):
            return await self._hedge(first, second, timeout)

    async def _hedge(self, first: Try[T], second: Try[T], timeout: float) -> T:
        after = self._hedge_after_seconds
        if after is None or after >= timeout:
            return await first(timeout)
        return await hedged(lambda: first(timeout), lambda: second(timeout - after), after)
