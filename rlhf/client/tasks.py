"""Concurrent work: tasks that fail together, work that ends early with something else, and news for whoever waits."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

T = TypeVar("T")


@asynccontextmanager
async def task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """Like asyncio.TaskGroup: the first task that fails cancels the others. Raises that failure, not a group of it."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except BaseExceptionGroup as failures:
        raise _first(failures) from None


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    error = failures.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


async def first_of(work: Awaitable[T], end: Awaitable[object], timeout: float | None = None) -> tuple[T] | None:
    """Returns what `work` returns, in a tuple; None if `end` or the time came first. Whatever still runs is cancelled.

    Args: end: ends the wait, such as the wait() of an event; if it fails, its failure is raised.
    Raises: what `work` raises.
    """
    working, ending = asyncio.ensure_future(work), asyncio.ensure_future(end)
    both: set[asyncio.Future[Any]] = {working, ending}
    try:
        await asyncio.wait(both, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return (working.result(),)
        if ending.done():
            ending.result()
        return None
    finally:
        for task in both:
            task.cancel()
        await asyncio.gather(*both, return_exceptions=True)


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Returns what `work` returns; a cancellation of the caller takes effect only when it has ended."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


def at_once(asking: Coroutine[Any, Any, T]) -> T:
    """Returns what a coroutine returns that has nothing to wait for, such as the code of a call that has ended.

    For callbacks: a task might not be run any more before the loop ends.
    """
    try:
        asking.send(None)
    except StopIteration as answer:
        known: T = answer.value
        return known
    finally:
        asking.close()
    raise AssertionError("a call that has ended keeps its end to itself")


class News:
    """Wakes everybody who waits for a change at that moment; who begins to wait later waits for the next one."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def tell(self) -> None:
        """Wakes those who wait."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self) -> None:
        """Returns at the next tell()."""
        await self._event.wait()
