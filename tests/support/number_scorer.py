"""A scorer for tests: takes completions that spell a number and answers it, times a factor."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from prometheus_client import CollectorRegistry

from services.reward.config import LimitsConfig
from services.reward.core import RewardCore
from services.reward.metrics import RewardMetrics
from services.reward.scorers.scorer import ErrorCode, Item, ScoreError, ScorerError, ScorerInfo, TextPair


class NumberScorer:
    """Words other than numbers raise, but for those that name what else may go wrong; see `score`."""

    def __init__(self, version: str = "number-1", factor: float = 1.0, **info: Any) -> None:
        self.info = ScorerInfo(
            **{"name": "number", "version": version, "tokenizer_digest": "t1", "max_sequence_tokens": 0, **info}
        )
        self.factor = factor
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.prepare_gate = threading.Event()
        self.prepare_gate.set()
        self.preparing = threading.Event()
        self.prepared: list[str] = []
        self.batches: list[list[str]] = []
        self.closed = threading.Event()

    @property
    def scored(self) -> list[str]:
        """All that was scored, in order."""
        return [number for batch in self.batches for number in batch]

    def prepare(self, item: Item) -> str | ScoreError:
        assert isinstance(item, TextPair)
        self.prepared.append(item.completion)
        self.preparing.set()
        assert self.prepare_gate.wait(10)
        if item.completion == "word":
            return ScoreError(ErrorCode.INVALID_ITEM, "not a number")
        if item.completion == "unreadable":
            raise ValueError("cannot be read")
        return item.completion

    def size_of(self, prepared: str) -> int:
        return len(prepared)

    def score(self, batch: list[str]) -> list[Any]:
        """Waits at the gate. "slow" and "away" raise errors of these kinds, "lost" is left out, "none" is no number."""
        self.batches.append(list(batch))
        self.entered.set()
        assert self.gate.wait(10)
        for number in batch:
            if number == "slow":
                raise ScorerError(ErrorCode.TIMEOUT, "took too long")
            if number == "away":
                raise ScorerError(ErrorCode.UNAVAILABLE, "the judge is away")
        return [None if number == "none" else float(number) * self.factor for number in batch if number != "lost"]

    def close(self) -> None:
        self.closed.set()

    async def wait_until_running(self) -> None:
        await asyncio.to_thread(self.entered.wait, 10)


@asynccontextmanager
async def loaded(scorer: Any, watch: Any = None, loader: Any = None, **limits: Any) -> AsyncIterator[Any]:
    """The core that serves the scorer, and its metrics."""
    registry = CollectorRegistry()
    core = RewardCore(lambda: scorer, LimitsConfig(**limits), RewardMetrics(registry), watch, loader)
    await core.load()
    try:
        yield core, registry
    finally:
        await core.close()


async def until(condition: Callable[[], bool]) -> None:
    """Waits for what has no event of its own; the test's own limit ends it."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


def text(completion: str) -> TextPair:
    return TextPair("prompt", completion)
