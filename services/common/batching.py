"""Dynamic batching: many callers' items, one worker thread, batches of like lengths. No torch, no gRPC."""

import asyncio
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from rlhf_services.common.errors import InternalError, NotReadyError, OverloadedError

Item = TypeVar("Item")
Result = TypeVar("Result")

# A forward pass reads every weight once, however little it holds: about what this many tokens cost. Padding below it is
# cheaper than another pass.
FREE_PADDING_TOKENS = 64

MAX_PADDING_RATIO = 0.15
"""Above the free padding, the share of a batch that may be padding."""


def plan_batches(lengths: Sequence[int], max_batch_tokens: int) -> list[list[int]]:
    """Indices of `lengths`, each in exactly one batch; longest first, so that a batch holds like lengths.

    A batch of n items is padded to its longest, L: n * L is at most max_batch_tokens (a single longer item goes alone)
    and its padding at most MAX_PADDING_RATIO of n * L, or FREE_PADDING_TOKENS.
    """
    batches: list[list[int]] = []
    longest = padding = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        if batches:
            padded = (len(batches[-1]) + 1) * longest
            new_padding = padding + longest - length
            allowed = max(FREE_PADDING_TOKENS, MAX_PADDING_RATIO * padded)
            if padded <= max_batch_tokens and new_padding <= allowed:
                batches[-1].append(index)
                padding = new_padding
                continue
        batches.append([index])
        longest, padding = length, 0
    return batches


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry(Generic[Item, Result]):
    """One item on its way. The future is cancelled when its caller has gone."""

    item: Item
    num_tokens: int
    group: Hashable
    future: asyncio.Future[Result]


class Batcher(Generic[Item, Result]):
    """Runs items in batches in one dedicated thread, so that the event loop stays free.

    The batch that holds the oldest waiting item goes next: nothing starves, and what arrived in the meantime fills it
    up. Items whose caller has gone (cancelled, or past its deadline) are dropped before they are run.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], list[Result]],
        tokens_of: Callable[[Item], int],
        max_batch_tokens: int,
        max_queue_items: int,
        group_of: Callable[[Item], Hashable] = lambda item: None,
    ) -> None:
        """Prepares a batcher; `start` begins the work.

        Args:
            run: called in the worker thread with at least one item; one result for each, in order. What it raises
                reaches every caller that has an item in the batch.
            tokens_of: the length of an item in tokens.
            max_batch_tokens: bound on items * longest item of one run.
            max_queue_items: bound on the items that wait (those that run are not counted).
            group_of: items of different groups never share a run.
        """
        self._run = run
        self._tokens_of = tokens_of
        self._group_of = group_of
        self._max_batch_tokens = max_batch_tokens
        self._max_queue_items = max_queue_items
        self._waiting: list[_Entry[Item, Result]] = []
        self._running: list[_Entry[Item, Result]] = []
        self._running_since: float | None = None
        self._wakeup = asyncio.Event()
        self._thread: ThreadPoolExecutor | None = None
        self._worker: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Starts the worker. Call it once, in the event loop that submits."""
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batcher")
        self._worker = asyncio.get_running_loop().create_task(self._work(self._thread), name="batcher")

    async def close(self) -> None:
        """Stops the worker; whoever still waits gets NotReadyError. A run in progress ends by itself, unheard."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.cancel()
            await asyncio.wait([worker])
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
        for entry in self._waiting + self._running:
            if not entry.future.done():
                entry.future.set_exception(NotReadyError("the service is shutting down; repeat the call elsewhere"))
        self._waiting, self._running = [], []

    @property
    def num_waiting(self) -> int:
        """Items that wait for a run, those included whose caller has gone since the last run began."""
        return len(self._waiting)

    @property
    def busy_seconds(self) -> float:
        """How long the present run has lasted; 0 if none is in progress."""
        return 0.0 if self._running_since is None else time.monotonic() - self._running_since

    def require_room(self, num_items: int) -> None:
        """Raises OverloadedError if num_items more would overflow the queue."""
        if len(self._waiting) + num_items > self._max_queue_items:
            self._drop_abandoned()
        if len(self._waiting) + num_items > self._max_queue_items:
            raise OverloadedError(
                f"the queue holds {len(self._waiting)} of {self._max_queue_items} items, no room for {num_items} more; "
                "send fewer items at a time, repeat later, or add replicas"
            )

    async def submit_all(self, items: Sequence[Item]) -> list[Result]:
        """The items' results, in order.

        Raises: OverloadedError at once if the queue would overflow; NotReadyError if the batcher is not running; what
        `run` raised.
        """
        if self._worker is None:
            raise NotReadyError("the service is not running yet, or is shutting down; repeat the call later")
        self.require_room(len(items))
        loop = asyncio.get_running_loop()
        entries: list[_Entry[Item, Result]] = [
            _Entry(item=item, num_tokens=self._tokens_of(item), group=self._group_of(item), future=loop.create_future())
            for item in items
        ]
        self._waiting.extend(entries)
        self._wakeup.set()
        try:
            return await asyncio.gather(*(entry.future for entry in entries))
        finally:
            # After a failure or a cancellation nobody wants the rest.
            for entry in entries:
                entry.future.cancel()

    async def _work(self, thread: ThreadPoolExecutor) -> None:
        """Runs batch after batch until cancelled."""
        while True:
            await self._wakeup.wait()
            batch = self._take_batch()
            if not batch:
                self._wakeup.clear()
                continue
            self._running, self._running_since = batch, time.monotonic()
            run = asyncio.get_running_loop().run_in_executor(thread, self._run, [entry.item for entry in batch])
            # wait, unlike await, leaves what `run` raised in the future: the worker outlives it.
            await asyncio.wait([run])
            self._running, self._running_since = [], None
            _settle(batch, run)

    def _take_batch(self) -> list[_Entry[Item, Result]]:
        """Removes the next batch from the queue; empty if nothing waits."""
        self._drop_abandoned()
        if not self._waiting:
            return []
        oldest = self._waiting[0]
        candidates = [entry for entry in self._waiting if entry.group == oldest.group]
        plan = plan_batches([entry.num_tokens for entry in candidates], self._max_batch_tokens)
        batch = [candidates[index] for index in next(indices for indices in plan if 0 in indices)]
        taken = {id(entry) for entry in batch}
        self._waiting = [entry for entry in self._waiting if id(entry) not in taken]
        return batch

    def _drop_abandoned(self) -> None:
        """Forgets the items whose caller has gone."""
        self._waiting = [entry for entry in self._waiting if not entry.future.done()]


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
