"""Long lists in several calls: cut, a few calls in flight at once, results in order."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


async def in_batches(
    items: Sequence[Item],
    size: int,
    work: Callable[[Sequence[Item]], Awaitable[Result]],
    max_concurrent: int,
) -> AsyncGenerator[Result, None]:
    """Yields work's result for each `size` items, in their order; what is in flight is cancelled if one fails.

    A slow first batch holds back those after it, so no more than max_concurrent results wait in memory.
    """
    if size < 1 or max_concurrent < 1:
        raise ValueError(f"batches of {size} items, {max_concurrent} at once; give at least 1 of each")
    starts = iter(range(0, len(items), size))
    running: deque[asyncio.Future[Result]] = deque()
    try:
        while True:
            while len(running) < max_concurrent and (start := next(starts, None)) is not None:
                running.append(asyncio.ensure_future(work(items[start : start + size])))
            if not running:
                return
            result = await running[0]
            running.popleft()
            yield result
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
