"""A batcher of integers whose runs a test can hold back and look at."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from rlhf.serving.batching.batcher import Batcher


class Recorder:
    """Answers 10 times each item, remembers its batches, and holds every run until `gate` is set."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()

    def run(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        self.entered.set()
        assert self.gate.wait(10)
        if -1 in items:
            raise ValueError("item -1 cannot be run")
        return [10 * item for item in items]

    async def wait_until_running(self) -> None:
        await asyncio.to_thread(self.entered.wait, 10)


@asynccontextmanager
async def running(
    run: Callable[[list[int]], list[int]],
    *,
    max_batch_tokens: int = 1000,
    max_queue_items: int = 100,
    **options: Any,
) -> AsyncIterator[Batcher[int, int]]:
    """A started batcher of integers, each as long in tokens as it is large."""
    batcher = Batcher(run, abs, max_batch_tokens=max_batch_tokens, max_queue_items=max_queue_items, **options)
    batcher.start()
    try:
        yield batcher
    finally:
        await batcher.close()
