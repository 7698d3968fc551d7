"""An event loop in a thread of its own, for callers that have none."""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """Runs coroutines for any thread. The thread ends with close(), or with the process."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Returns what the coroutine returns; an interrupt of the waiting thread cancels it."""
        if problem := self._why_not():
            work.close()
            raise RuntimeError(f"the thread {self._thread.name!r} {problem}")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    @property
    def is_closed(self) -> bool:
        """Whether close() was called."""
        return self._loop.is_closed()

    def close(self) -> None:
        """Cancels what still runs, and returns when the thread has ended. May be called again."""
        if self.is_closed:
            return
        if self._thread.is_alive():
            self.run(_cancel_others())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()

    def _why_not(self) -> str:
        """Returns why nothing can be run; empty if it can."""
        if not self._thread.is_alive():
            return "has ended: closed, or left behind by a fork"
        if threading.current_thread() is self._thread:
            return "cannot wait for itself: do not call its client from a callback"
        return ""


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
