"""Two ways to the same answer: the second is tried when the first is slow, and the first good answer wins."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from rlhf.errors import InternalError, NotReadyError, OverloadedError

T = TypeVar("T")

_OTHER_MAY_SUCCEED = (NotReadyError, OverloadedError, InternalError)
"""What one replica may answer while the other has the answer; any other error is true of both."""


async def hedged(first: Callable[[], Awaitable[T]], second: Callable[[], Awaitable[T]], after_seconds: float) -> T:
    """Returns the first good answer, and cancels the other call.

    The second call is made only if the first has not ended after that time. If the first fails before, its failure is
    raised; if both fail, the first's, which is the one that would have come without a hedge.
    """
    tasks = [asyncio.ensure_future(first())]
    try:
        done, _ = await asyncio.wait(tasks, timeout=after_seconds)
        if done:
            return tasks[0].result()
        tasks.append(asyncio.ensure_future(second()))
        for earliest in asyncio.as_completed(tasks):
            try:
                return await earliest
            except _OTHER_MAY_SUCCEED:
                continue
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
