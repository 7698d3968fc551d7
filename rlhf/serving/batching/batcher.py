"""Dynamic batching: many callers' items, one worker thread, fair between the callers. No torch, no gRPC."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from rlhf.errors import InternalError, NotReadyError, OverloadedError
from rlhf.serving.batching.queue import FairQueue, Pace, Waiting, batch_of_first

Item = TypeVar("Item")
Result = TypeVar("Result")

WINDOW_BATCHES = 4
"""Items of like lengths are looked for among what the next so many batches would hold."""

RESERVED_SHARE = 8
"""One part in so many of the queue is kept for callers of which nothing waits."""


@dataclass(eq=False, slots=True, kw_only=True)
class _Entry(Waiting, Generic[Item, Result]):
    """One item on its way. The future is cancelled when its caller has gone."""

    item: Item
    future: asyncio.Future[Result]


class Batcher(Generic[Item, Result]):
    """Runs items in batches in one dedicated thread, so that the event loop stays free.

    A batch begins with the oldest item of the caller that has been served least (see FairQueue): nothing starves, and
    no caller keeps the others out. Items whose caller has gone (cancelled, or past its deadline) are not run.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], list[Result]],
        tokens_of: Callable[[Item], int],
        *,
        max_batch_tokens: int,
        max_queue_items: int,
        max_queue_seconds: float = 0.0,
        batch_wait_seconds: float = 0.0,
        pads: bool = True,
        group_of: Callable[[Item], Hashable] = lambda item: None,
        observe_waits: Callable[[Sequence[float]], None] = lambda seconds: None,
    ) -> None:
        """Prepares a batcher; `start` begins the work.

        Args:
            run: called in the worker thread with at least one item; one result for each, in order. What it raises
                reaches every caller that has an item in the batch.
            tokens_of: the length of an item in tokens.
            max_batch_tokens: bound on the tokens of one run, padding included; a longer item goes alone.
            max_queue_items: bound on the items that wait (those that run are not counted).
            max_queue_seconds: what would wait longer than this, as estimated, is refused; 0: no such bound.
            batch_wait_seconds: how long an idle thread lets the first item wait for company, unless a batch is full.
            pads: whether `run` pads its items to the longest: then a batch holds like lengths, else simply what goes
                next.
            group_of: items of different groups never share a run.
            observe_waits: told the seconds that each item of a batch waited, when the batch begins.
        """
        self._run = run
        self._tokens_of = tokens_of
        self._group_of = group_of
        self._observe_waits = observe_waits
        self._max_batch_tokens = max_batch_tokens
        self._max_queue_items = max_queue_items
        self._max_queue_seconds = max_queue_seconds
        self._batch_wait_seconds = batch_wait_seconds
        self._pads = pads
        self._queue: FairQueue[_Entry[Item, Result]] = FairQueue()
        self._pace = Pace()
        self._running: list[_Entry[Item, Result]] = []
        self._running_since: float | None = None
        self._arrival = asyncio.Event()
        self._accepts = False
        self._thread: ThreadPoolExecutor | None = None
        self._worker: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts the worker. Call it once, in the event loop that submits."""
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batcher")
        self._worker = asyncio.get_running_loop().create_task(self._work(self._thread), name="batcher")
        self._accepts = True

    async def close(self) -> None:
        """Stops the worker; whoever still waits gets NotReadyError. A run in progress ends by itself, unheard."""
        self._accepts = False
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.cancel()
            await asyncio.wait([worker])
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
        for entry in [*self._queue, *self._running]:
            if not entry.future.done():
                entry.future.set_exception(NotReadyError("the service is shutting down; repeat the call elsewhere"))
        self._queue, self._running = FairQueue(), []

    @property
    def num_waiting(self) -> int:
        """Items that wait for a run."""
        return len(self._queue)

    @property
    def busy_seconds(self) -> float:
        """How long the present run has lasted; 0 if none is in progress."""
        return 0.0 if self._running_since is None else time.monotonic() - self._running_since

    def require_room(self, num_items: int, caller: str = "") -> None:
        """Raises OverloadedError if num_items more of this caller would overflow the queue."""
        limit = self._max_queue_items
        if self._queue.holds(caller):
            limit -= limit // RESERVED_SHARE
        if len(self._queue) + num_items > limit:
            raise self._overloaded(
                f"the queue holds {len(self._queue)} of {self._max_queue_items} items, no room for {num_items} more",
                # What they hold is not known yet: about as much as the others.
                num_items * self._queue.num_tokens / max(1, len(self._queue)),
            )

    async def submit_all(self, items: Sequence[Item], caller: str = "") -> list[Result]:
        """The items' results, in order.

        Args:
            caller: whose they are; callers share the thread evenly, by tokens.
        Raises: OverloadedError at once if the queue would overflow, or the wait be too long; NotReadyError if the
            batcher is not running; what `run` raised.
        """
        if not self._accepts:
            raise NotReadyError("the service is not running yet, or is shutting down; repeat the call later")
        self.require_room(len(items), caller)
        entries = [self._entry_of(item, caller) for item in items]
        self._require_short_wait(sum(entry.num_tokens for entry in entries), caller)
        self._queue.add(entries)
        self._arrival.set()
        try:
            return await asyncio.gather(*(entry.future for entry in entries))
        finally:
            # After a failure or a cancellation nobody wants the rest.
            for entry in entries:
                entry.future.cancel()
            if unwanted := [entry for entry in entries if entry.future.cancelled()]:
                self._queue.discard(unwanted)

    def _entry_of(self, item: Item, caller: str) -> _Entry[Item, Result]:
        return _Entry(
            item=item,
            caller=caller,
            num_tokens=self._tokens_of(item),
            group=self._group_of(item),
            arrived=time.monotonic(),
            future=asyncio.get_running_loop().create_future(),
        )

    def _require_short_wait(self, num_tokens: int, caller: str) -> None:
        """Raises OverloadedError if so many tokens more would wait for longer than is allowed."""
        if not self._max_queue_seconds:
            return
        seconds = self._pace.seconds_for(self._queue.tokens_before(caller, num_tokens))
        if seconds is not None and seconds > self._max_queue_seconds:
            raise self._overloaded(
                f"the items would wait about {seconds:.1f} s, the limit is {self._max_queue_seconds:g} s "
                "(limits.max_queue_seconds)",
                num_tokens,
            )

    def _overloaded(self, fault: str, num_tokens: float) -> OverloadedError:
        """The refusal of about so many tokens."""
        hint = self._pace.retry_after(num_tokens, self._queue.num_tokens, time.monotonic())
        return OverloadedError(
            f"{fault}; send fewer items at a time, repeat in {hint:.2g} s, or add replicas", retry_after_seconds=hint
        )

    async def _work(self, thread: ThreadPoolExecutor) -> None:
        """Runs batch after batch, until cancelled."""
        while True:
            if not self._queue:
                self._arrival.clear()
                await self._arrival.wait()
                await self._wait_for_company()
                continue
            batch = self._take_batch()
            self._running, self._running_since = batch, time.monotonic()
            self._observe_waits([self._running_since - entry.arrived for entry in batch])
            run = asyncio.get_running_loop().run_in_executor(thread, self._run, [entry.item for entry in batch])
            # wait, unlike await, leaves what `run` raised in the future: the worker outlives it.
            await asyncio.wait([run])
            self._pace.observe(sum(entry.num_tokens for entry in batch), self.busy_seconds)
            self._running, self._running_since = [], None
            _settle(batch, run)

    async def _wait_for_company(self) -> None:
        """Gives others the time to join the first item's batch, unless it is full."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._batch_wait_seconds):
                while 0 < self._queue.num_tokens < self._max_batch_tokens:
                    self._arrival.clear()
                    await self._arrival.wait()

    def _take_batch(self) -> list[_Entry[Item, Result]]:
        """Removes the next batch from the queue, which holds something."""
        if self._pads:
            window = self._queue.window(WINDOW_BATCHES * self._max_batch_tokens)
            chosen = batch_of_first([entry.num_tokens for entry in window], self._max_batch_tokens)
            batch = [window[index] for index in chosen]
        else:
            batch = self._queue.window(self._max_batch_tokens)
        self._queue.take(batch)
        return batch


def _settle(batch: list[_Entry[Item, Result]], run: "asyncio.Future[list[Result]]") -> None:
    """Hands a finished run's results, or its failure, to those who still wait."""
    error = run.exception()
    results = [] if error is not None else run.result()
    if error is None and len(results) != len(batch):
        error = InternalError(f"the model answered {len(results)} results for {len(batch)} items")
    for index, entry in enumerate(batch):
        if entry.future.done():
            continue
        if error is not None:
            entry.future.set_exception(error)
        else:
            entry.future.set_result(results[index])
