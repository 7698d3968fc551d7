"""One loaded scorer at work: the thread that prepares items for it, and the batches that its own thread runs."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rlhf.client.tracing import tracer, tracing_is_on
from rlhf.errors import NotReadyError
from rlhf.logs import get_logger
from rlhf.serving.batching.batcher import Batcher
from services.reward.comparing import (
    ComparisonOutcome,
    ComparisonPair,
    compare_probability,
    compare_rewards,
    fault_of_either,
    fault_of_margin,
)
from services.reward.config import LimitsConfig
from services.reward.item_checks import fault_of_item
from services.reward.metrics import RewardMetrics
from services.reward.scorers.fault_isolation import checked_outcome, checked_probability, run_isolated
from services.reward.scorers.scorer import ErrorCode, Item, Outcome, PairScorer, ScoreError, Scorer, ScorerInfo

log = get_logger(__name__)

PREPARED_AT_A_TIME = 32
"""Items of one call; then another call has its turn, so that a large one does not hold up the small ones."""


@dataclass(slots=True)
class _Work:
    """What goes through the batcher: an item, or a pair of items for a scorer that compares."""

    prepared: Any
    is_pair: bool = False
    begun_ns: int = 0
    """When its batch began and ended, for the spans of its call."""
    ended_ns: int = 0


class ServingModel:
    """A scorer with its threads. What is asked of it runs to its end, even when another has taken its place."""

    def __init__(self, scorer: Scorer[Any], limits: LimitsConfig, metrics: RewardMetrics) -> None:
        """Starts to batch; in the event loop that asks."""
        self.info: ScorerInfo = scorer.info
        self._scorer = scorer
        self._limits = limits
        self._metrics = metrics
        # One thread: two must not use a tokenizer at a time. Its own: text must not wait for the model.
        self._preparer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prepare")
        self._num_preparing = 0
        self._num_calls = 0
        self._unused = asyncio.Event()
        self._unused.set()
        self._closed = False
        self._batcher: Batcher[_Work, Any] = Batcher(
            self._run,
            self._size_of,
            max_batch_tokens=limits.max_batch_tokens,
            max_queue_items=limits.max_queue_items,
            max_queue_seconds=limits.max_queue_seconds,
            batch_wait_seconds=limits.batch_wait_ms / 1000,
            pads=self.info.pads,
            group_of=lambda work: work.is_pair,
            observe_waits=self._observe_waits,
        )
        self._batcher.start()

    @property
    def num_waiting(self) -> int:
        """Items that are prepared, or wait for a batch."""
        return self._batcher.num_waiting + self._num_preparing

    @property
    def busy_seconds(self) -> float:
        """How long the present batch has been in the scorer; 0 if there is none."""
        return self._batcher.busy_seconds

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keeps `drain` waiting as long as the block runs."""
        self._num_calls += 1
        self._unused.clear()
        try:
            yield
        finally:
            self._num_calls -= 1
            if self._num_calls == 0:
                self._unused.set()

    async def drain(self) -> None:
        """Returns once the calls that use it have ended and it is closed."""
        await self._unused.wait()
        await self.close()

    async def close(self) -> None:
        """Stops the work; calls that still wait get NotReadyError."""
        if self._closed:
            return
        self._closed = True
        await self._batcher.close()
        self._preparer.shutdown(wait=False)
        # In a thread: a scorer may have a process or connections to end.
        await asyncio.to_thread(self._scorer.close)

    async def score(self, items: Sequence[Item | None], caller: str) -> list[Outcome]:
        """The outcome of each item, in order. Raises: OverloadedError if they do not fit into the queue."""
        with self.in_use():
            prepared = await self._prepare_all(items, caller)
            good = [index for index, item in enumerate(prepared) if not isinstance(item, ScoreError)]
            rewards = await self._ask([_Work(prepared[index]) for index in good], caller)
            outcomes: list[Outcome] = list(prepared)
            for index, reward in zip(good, rewards, strict=True):
                outcomes[index] = reward
            return outcomes

    async def compare(self, pairs: Sequence[ComparisonPair], caller: str) -> list[ComparisonOutcome]:
        """The outcome of each pair, in order. Raises: as `score`."""
        outcomes: list[ComparisonOutcome | None] = [fault_of_margin(pair.margin) for pair in pairs]
        good = [index for index, outcome in enumerate(outcomes) if outcome is None]
        ask = self._ask_for_pairs if isinstance(self._scorer, PairScorer) else self._ask_for_rewards
        with self.in_use():
            answers = await ask([pairs[index] for index in good], caller)
        for index, answer in zip(good, answers, strict=True):
            outcomes[index] = answer
        return [outcome for outcome in outcomes if outcome is not None]

    async def _ask_for_rewards(self, pairs: Sequence[ComparisonPair], caller: str) -> list[ComparisonOutcome]:
        outcomes = await self.score([item for pair in pairs for item in (pair.first, pair.second)], caller)
        scale = self.info.logit_scale
        return [
            compare_rewards(first, second, pair.margin, scale)
            for pair, first, second in zip(pairs, outcomes[::2], outcomes[1::2], strict=True)
        ]

    async def _ask_for_pairs(self, pairs: Sequence[ComparisonPair], caller: str) -> list[ComparisonOutcome]:
        prepared = await self._prepare_all([item for pair in pairs for item in (pair.first, pair.second)], caller)
        both = list(zip(prepared[::2], prepared[1::2], strict=True))
        faults = [fault_of_either(first, second) for first, second in both]
        works = [_Work(pair, is_pair=True) for pair, fault in zip(both, faults, strict=True) if fault is None]
        answers = iter(await self._ask(works, caller))
        return [
            fault or compare_probability(next(answers), pair.margin) for pair, fault in zip(pairs, faults, strict=True)
        ]

    async def _ask(self, works: list[_Work], caller: str) -> list[Any]:
        """The scorer's answers, and the call's spans of waiting and scoring."""
        submitted_ns = time.time_ns()
        answers = await self._batcher.submit_all(works, caller)
        if works and tracing_is_on():
            begun_ns = min(work.begun_ns for work in works)
            tracer().start_span("queue", start_time=submitted_ns).end(begun_ns)
            tracer().start_span("model", start_time=begun_ns).end(max(work.ended_ns for work in works))
        return answers

    async def _prepare_all(self, items: Sequence[Item | None], caller: str) -> list[Any]:
        """The items as the scorer takes them, or their errors."""
        self._batcher.require_room(self._num_preparing + len(items), caller)
        start = time.perf_counter()
        loop = asyncio.get_running_loop()
        prepared: list[Any] = []
        self._num_preparing += len(items)
        try:
            with tracer().start_as_current_span("tokenise"):
                for begin in range(0, len(items), PREPARED_AT_A_TIME):
                    if self._closed:
                        raise NotReadyError("the service is shutting down; repeat the call elsewhere")
                    part = items[begin : begin + PREPARED_AT_A_TIME]
                    prepared += await loop.run_in_executor(self._preparer, self._prepare_some, part)
        finally:
            self._num_preparing -= len(items)
        self._metrics.phase_seconds.labels("tokenise").observe(time.perf_counter() - start)
        return prepared

    def _prepare_some(self, items: Sequence[Item | None]) -> list[Any]:
        """Runs in the preparing thread."""
        return [self._prepare(item) for item in items]

    def _prepare(self, item: Item | None) -> Any:
        fault = fault_of_item(item, self._limits.max_text_characters)
        if fault is not None:
            return fault
        assert item is not None  # it would be the fault
        try:
            return self._scorer.prepare(item)
        except Exception as error:
            # A scorer may raise anything, and the other items are to be answered.
            log.exception("scorer failed to prepare an item")
            return ScoreError(
                ErrorCode.SCORER_FAILED,
                f"the scorer raised {type(error).__name__} as it read the item; the service's log has the details",
            )

    def _run(self, batch: list[_Work]) -> list[Any]:
        """Answers to a batch of one kind. Runs in the batcher's thread."""
        start, begun_ns = time.perf_counter(), time.time_ns()
        inputs = [work.prepared for work in batch]
        if batch[0].is_pair:
            assert isinstance(self._scorer, PairScorer)  # only then are there pairs
            answers = run_isolated(self._scorer.compare, inputs, checked_probability)
        else:
            answers = run_isolated(self._scorer.score, inputs, checked_outcome)
        seconds, ended_ns = time.perf_counter() - start, time.time_ns()
        for work in batch:
            work.begun_ns, work.ended_ns = begun_ns, ended_ns
        self._metrics.batch.observe([self._size_of(work) for work in batch], seconds, self.info.pads)
        self._metrics.phase_seconds.labels("model").observe(seconds)
        return answers

    def _observe_waits(self, seconds: Sequence[float]) -> None:
        phase = self._metrics.phase_seconds.labels("queue")
        for each in seconds:
            phase.observe(each)

    def _size_of(self, work: _Work) -> int:
        if work.is_pair:
            return sum(self._scorer.size_of(prepared) for prepared in work.prepared)
        return self._scorer.size_of(work.prepared)
