"""Patience with a service: what is asked for again, when, for how long, and what the error says in the end.

Below it every channel repeats a call that has no side effects while the answer is UNAVAILABLE, for a second or two.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from rlhf.client.base import ServiceClient
from rlhf.errors import NotReadyError, OverloadedError

T = TypeVar("T")

POLL_SECONDS = 1.0
"""Between two questions for the health of a service that is away."""
MIN_PAUSE_SECONDS = 0.05
"""Before a call is repeated, whatever the service says."""
MAX_TIMEOUTS = 3
"""How often a scorer may take too long over an item: it may be one that it never gets done with."""


def _warn(_: ServiceClient, message: str) -> None:
    logging.getLogger(__name__).warning(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a caller goes on with a service that is away or overloaded, or whose scorers are."""

    deadline_seconds: float = 120.0
    """Of one call."""
    wait_seconds: float = 300.0
    """For a service that is away or overloaded to come back, in all; then NotReadyError."""
    item_tries: int | None = 3
    """How often an item is sent whose error may pass, such as a judge's endpoint that is away. None: as long as
    wait_seconds if its scorer is away, MAX_TIMEOUTS times if that takes too long."""
    remedy: str = "start it, or give the caller more patience"
    """What to do when the wait is over, for the error's message."""
    on_wait: Callable[[ServiceClient, str], None] = _warn
    """Told once a call, in a sentence that names the service, when waiting begins."""
    on_answer: Callable[[ServiceClient], None] = lambda _: None
    """Told when a service has answered."""

    async def ask(self, client: ServiceClient, call: Callable[[], Awaitable[T]]) -> T:
        """Returns what `call` returns, calling again once the service is back if it was away or overloaded.

        Args:
            client: whose health is asked for while waiting.
            call: makes the call, anew each time; must be safe to repeat.
        Raises: NotReadyError when the wait is over; any other ServiceError of the call at once.
        """
        deadline: float | None = None
        while True:
            try:
                answer = await call()
            except (NotReadyError, OverloadedError) as error:
                if deadline is None:
                    deadline = time.monotonic() + self.wait_seconds
                    self.on_wait(client, f"{error}; waiting up to {self.wait_seconds:.0f} s for it")
                await self._wait_until_serving(client, deadline, error)
            else:
                self.on_answer(client)
                return answer

    def may_pass(self, codes: Sequence[str]) -> bool:
        """Returns whether an item should be sent again. Args: codes: its errors so far, "timeout" or "unavailable"."""
        if self.item_tries is not None:
            return len(codes) < self.item_tries
        return codes[-1] != "timeout" or codes.count("timeout") < MAX_TIMEOUTS

    async def _wait_until_serving(self, client: ServiceClient, deadline: float, reason: Exception) -> None:
        while True:
            if time.monotonic() >= deadline:
                raise NotReadyError(f"{reason}; it did not come back in time: {self.remedy}") from None
            await asyncio.sleep(POLL_SECONDS)
            if await client.is_serving():
                return


async def wait_out_overload(call: Callable[[float], Awaitable[T]], deadline_seconds: float) -> T:
    """Returns what `call` returns, calling again while the service is overloaded and says when to come back.

    Args:
        call: makes the call with a deadline in seconds; must be safe to repeat.
        deadline_seconds: for all tries together.
    Raises: OverloadedError if there is no time left; any other ServiceError of the call at once.
    """
    deadline = time.monotonic() + deadline_seconds
    while True:
        try:
            return await call(deadline - time.monotonic())
        except OverloadedError as error:
            # Without a hint it is a limit that no waiting lifts, such as the size of a message.
            if error.retry_after_seconds is None:
                raise
            # Those who were refused together come back apart.
            pause = max(error.retry_after_seconds, MIN_PAUSE_SECONDS) * random.uniform(1.0, 1.3)
            if time.monotonic() + pause >= deadline:
                raise
        await asyncio.sleep(pause)
