"""The service between wire and scorer: prepares items, batches them across callers, and answers each by itself."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rlhf_services.common.batching import Batcher
from rlhf_services.common.errors import InternalError, InvalidRequestError, NotReadyError
from rlhf_services.common.token_checks import fault_of_digest
from rlhf_services.reward.config import LimitsConfig
from rlhf_services.reward.metrics import RewardMetrics
from rlhf_services.reward.scorer import (
    EnsembleScore,
    ErrorCode,
    Outcome,
    ScoreError,
    Scorer,
    ScorerInfo,
    TextPair,
    TokenPair,
)


class RewardCore:
    """Scores batches of pairs; a Backend of common.serving. Each item gets a finite reward or an error of its own."""

    def __init__(self, build_scorer: Callable[[], Scorer[Any]], limits: LimitsConfig, metrics: RewardMetrics) -> None:
        """Args: build_scorer: makes the scorer, in a thread, when the service loads; may raise ConfigError."""
        self.limits = limits
        self._build_scorer = build_scorer
        self._metrics = metrics
        self._scorer: Scorer[Any] | None = None
        # One thread: two must not use a tokenizer at a time. Its own: text shall not wait for the model.
        self._preparer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prepare")
        self._num_preparing = 0
        self._batcher: Batcher[Any, Outcome] = Batcher(
            self._run,
            self._size_of,
            max_batch_tokens=limits.max_batch_tokens,
            max_queue_items=limits.max_queue_items,
        )
        metrics.batch.watch_queue(lambda: self._batcher.num_waiting + self._num_preparing, limits.max_queue_items)

    async def load(self) -> None:
        """Builds the scorer and starts to batch. Raises: ConfigError."""
        self._scorer = await asyncio.get_running_loop().run_in_executor(self._preparer, self._build_scorer)
        self._batcher.start()

    async def check(self) -> None:
        """Raises NotReadyError while a batch is stuck in the scorer."""
        if self._batcher.busy_seconds > self.limits.stuck_after_seconds:
            raise NotReadyError(
                f"the scorer has been busy with one batch for {self._batcher.busy_seconds:.0f} s (more than "
                f"limits.stuck_after_seconds = {self.limits.stuck_after_seconds:g}); restart the service if it stays so"
            )

    async def close(self) -> None:
        """Stops the work; calls that still wait get NotReadyError."""
        await self._batcher.close()
        self._preparer.shutdown(wait=False, cancel_futures=True)

    @property
    def info(self) -> ScorerInfo:
        """What is served."""
        return self._loaded().info

    async def score(self, pairs: Sequence[TextPair | TokenPair | None], tokenizer_digest: str) -> list[Outcome]:
        """The outcome of each pair, in order; None stands for an item without a pair.

        Raises: InvalidRequestError for what concerns all items; OverloadedError if they do not fit into the queue.
        """
        self._require_acceptable(len(pairs), tokenizer_digest)
        self._batcher.require_room(self._num_preparing + len(pairs))
        self._num_preparing += len(pairs)
        try:
            prepared = await asyncio.get_running_loop().run_in_executor(self._preparer, self._prepare_all, list(pairs))
        finally:
            self._num_preparing -= len(pairs)
        good = [index for index, item in enumerate(prepared) if not isinstance(item, ScoreError)]
        rewards = await self._batcher.submit_all([prepared[index] for index in good])
        outcomes: list[Outcome] = list(prepared)
        for index, reward in zip(good, rewards, strict=True):
            outcomes[index] = reward
        self._count(outcomes)
        return outcomes

    def _require_acceptable(self, num_items: int, tokenizer_digest: str) -> None:
        if num_items == 0:
            raise InvalidRequestError("items is empty; send at least one")
        if num_items > self.limits.max_items:
            raise InvalidRequestError(
                f"items has {num_items} entries, the limit is {self.limits.max_items}; split the batch"
            )
        fault = fault_of_digest(tokenizer_digest, self.info.tokenizer_digest)
        if fault is not None:
            raise InvalidRequestError(fault)

    def _prepare_all(self, pairs: list[TextPair | TokenPair | None]) -> list[Any]:
        return [self._prepare(pair) for pair in pairs]

    def _prepare(self, pair: TextPair | TokenPair | None) -> Any:
        """The pair as the scorer takes it, or its error. Runs in the preparing thread."""
        if pair is None:
            return ScoreError(ErrorCode.INVALID_ITEM, "the item has neither text nor tokens; set one of them")
        if isinstance(pair, TextPair):
            fault = self._fault_of_text(pair)
            if fault is not None:
                return fault
        return self._loaded().prepare(pair)

    def _fault_of_text(self, pair: TextPair) -> ScoreError | None:
        for field in ("prompt", "completion"):
            if not getattr(pair, field):
                return ScoreError(ErrorCode.INVALID_ITEM, f"text.{field} is empty; send at least one character")
        num_characters = len(pair.prompt) + len(pair.completion)
        if num_characters > self.limits.max_text_characters:
            return ScoreError(
                ErrorCode.TOO_LONG,
                f"text.prompt and text.completion have {num_characters} characters, the limit is "
                f"{self.limits.max_text_characters} (limits.max_text_characters); send a shorter pair",
            )
        return None

    def _run(self, batch: list[Any]) -> list[Outcome]:
        """Rewards of a batch. Runs in the batcher's thread."""
        start = time.perf_counter()
        rewards = self._loaded().score(batch)
        self._metrics.batch.observe([self._size_of(item) for item in batch], time.perf_counter() - start)
        if len(rewards) != len(batch):
            raise InternalError(f"the scorer answered {len(rewards)} rewards for {len(batch)} items")
        return [_finite(outcome) for outcome in rewards]

    def _size_of(self, prepared: Any) -> int:
        return self._loaded().size_of(prepared)

    def _loaded(self) -> Scorer[Any]:
        if self._scorer is None:
            raise NotReadyError("the scorer is still loading; repeat the call when the service's health is SERVING")
        return self._scorer

    def _count(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            if isinstance(outcome, ScoreError):
                self._metrics.errors.labels(outcome.code.name.lower()).inc()
                continue
            self._metrics.items.inc()
            self._metrics.score.observe(_reward_of(outcome))
            if isinstance(outcome, EnsembleScore):
                self._metrics.spread.observe(outcome.spread)


def _reward_of(outcome: EnsembleScore | float) -> float:
    return outcome.reward if isinstance(outcome, EnsembleScore) else outcome


def _finite(outcome: Outcome) -> Outcome:
    if isinstance(outcome, ScoreError):
        return outcome
    reward = _reward_of(outcome)
    if math.isfinite(reward):
        return outcome
    return ScoreError(
        ErrorCode.NOT_FINITE,
        f"the scorer answered {reward}; check the model's weights for NaN, or serve it with scorer.dtype float32",
    )
