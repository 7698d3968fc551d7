"""Waits out the absence of a service, so that a restart costs a run some seconds and not its work."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from rlhf.client.base import ServiceClient
from rlhf.errors import NotReadyError, OverloadedError

T = TypeVar("T")

POLL_SECONDS = 1.0


async def call_when_available(
    call: Callable[[], Awaitable[T]],
    *,
    client: ServiceClient,
    wait_seconds: float,
    on_wait: Callable[[str], None],
    remedy: str = "start it again, then continue with --resume",
) -> T:
    """Returns what `call` returns, calling again once the service is back if it was away or overloaded.

    Args:
        call: makes the call, anew each time; must be safe to repeat.
        client: whose health is asked for while waiting.
        wait_seconds: how long to wait in all before giving up.
        on_wait: told once, in a sentence that names the service, when waiting begins.
        remedy: what to do when the wait is over, for the error's message.
    Raises: NotReadyError when the wait is over; any other ServiceError of the call at once.
    """
    deadline: float | None = None
    while True:
        try:
            return await call()
        except (NotReadyError, OverloadedError) as error:
            if deadline is None:
                deadline = time.monotonic() + wait_seconds
                on_wait(f"{error}; waiting up to {wait_seconds:.0f} s for it")
            await _wait_until_serving(client, deadline, error, remedy)


async def _wait_until_serving(client: ServiceClient, deadline: float, reason: Exception, remedy: str) -> None:
    while True:
        if time.monotonic() >= deadline:
            raise NotReadyError(f"{reason}; it did not come back in time: {remedy}") from None
        await asyncio.sleep(POLL_SECONDS)
        if await client.is_serving():
            return
