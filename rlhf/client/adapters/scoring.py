"""What all adapters do with items: score them in order, wait out a restart, and ask again for what may yet succeed."""

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

from rlhf.client.batches import in_batches
from rlhf.client.reward import Reward, RewardClient, RewardError, ScoreBatch, ScoreItem
from rlhf.client.waiting import call_when_available

T = TypeVar("T")

logger = logging.getLogger(__name__)

MAX_CONCURRENT_CALLS = 4
RETRY_SECONDS = 1.0


class NoRewardError(Exception):
    """A completion has no reward, and the framework knows no way to say so."""

    def __init__(self, error: RewardError) -> None:
        super().__init__(f"the completion has no reward: {error.code}: {error.message}")
        self.error = error


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long an adapter tries before it gives up."""

    deadline_seconds: float = 120.0
    """Of one call."""
    wait_seconds: float = 300.0
    """For a service that is away or overloaded to come back, in all; then NotReadyError."""
    item_tries: int = 3
    """How often an item is sent whose error may pass, such as a judge's endpoint that is away."""


class ItemScorer:
    """Scores any number of items through one client."""

    def __init__(self, client: RewardClient, patience: Patience, *, batch_items: int = 256) -> None:
        self._client = client
        self._patience = patience
        self._batch_items = batch_items
        self._max_items = 0

    async def score(self, items: Sequence[ScoreItem | RewardError]) -> list[Reward | RewardError]:
        """Returns a reward or an error for each item, in their order; an item that is an error stays that error.

        Raises: ServiceError if the service failed, or stayed away for longer than the patience lasts.
        """
        outcomes: list[Reward | RewardError | None] = [
            item if isinstance(item, RewardError) else None for item in items
        ]
        for num_tries in range(1, self._patience.item_tries + 1):
            wanted = [
                place for place, outcome in enumerate(outcomes) if outcome is None or _may_pass(items, place, outcome)
            ]
            if not wanted:
                break
            if num_tries > 1:
                await asyncio.sleep(RETRY_SECONDS)
            sent = [item for place in wanted if isinstance(item := items[place], ScoreItem)]
            for place, outcome in zip(wanted, await self._score_all(sent), strict=True):
                outcomes[place] = outcome
        return [outcome for outcome in outcomes if outcome is not None]

    async def _score_all(self, items: Sequence[ScoreItem]) -> list[Reward | RewardError]:
        results: list[Reward | RewardError] = []
        size = min(self._batch_items, await self._limit())
        async with aclosing(in_batches(items, size, self._score_batch, MAX_CONCURRENT_CALLS)) as batches:
            async for batch in batches:
                results += batch.results
        return results

    async def _score_batch(self, items: Sequence[ScoreItem]) -> ScoreBatch:
        # One id for all tries: what the service has already scored is neither computed nor counted again.
        request_id = uuid.uuid4().hex
        deadline_seconds = self._patience.deadline_seconds
        return await self._call(
            lambda: self._client.score(items, request_id=request_id, deadline_seconds=deadline_seconds)
        )

    async def _limit(self) -> int:
        """Returns how many items the service takes in one call, asked once."""
        if not self._max_items:
            model = await self._call(self._client.get_model)
            self._max_items = model.max_items or self._batch_items
        return self._max_items

    async def _call(self, call: Callable[[], Awaitable[T]]) -> T:
        return await call_when_available(
            call,
            client=self._client,
            wait_seconds=self._patience.wait_seconds,
            on_wait=logger.warning,
            remedy="start it, or give the adapter more patience",
        )


def _may_pass(items: Sequence[ScoreItem | RewardError], place: int, outcome: Reward | RewardError) -> bool:
    return isinstance(outcome, RewardError) and outcome.is_retryable and isinstance(items[place], ScoreItem)
