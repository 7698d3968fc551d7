"""Many calls for one item each, made at about the same time, become one call of the service."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from rlhf.client.adapters.scoring import ItemScorer, Patience
from rlhf.client.reward import Reward, RewardClient, RewardError, ScoreItem

BATCH_ITEMS = 256
WINDOW_SECONDS = 0.005

Outcome: TypeAlias = "asyncio.Future[Reward | RewardError]"
Scoring: TypeAlias = "asyncio.Task[list[Reward | RewardError]]"
Key: TypeAlias = tuple[str, str, float, Patience]


@dataclass(frozen=True, slots=True)
class _Waiting:
    item: ScoreItem | RewardError
    outcome: Outcome


class Gatherer:
    """Collects the items of concurrent calls for a short time, then scores them together. For one event loop."""

    def __init__(self, target: str, caller: str, window_seconds: float, patience: Patience) -> None:
        """Args: caller: as for RewardClient; window_seconds: how long a call waits for others to be sent with it."""
        self._client = RewardClient(target, caller=caller)
        self._scorer = ItemScorer(self._client, patience, batch_items=BATCH_ITEMS)
        self._window_seconds = window_seconds
        self._waiting: list[_Waiting] = []
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[Scoring] = set()

    async def score(self, item: ScoreItem | RewardError) -> Reward | RewardError:
        """Returns the outcome of one item. Raises: ServiceError if the service failed."""
        loop = asyncio.get_running_loop()
        outcome: Outcome = loop.create_future()
        self._waiting.append(_Waiting(item, outcome))
        if len(self._waiting) >= BATCH_ITEMS:
            self._send()
        elif self._timer is None:
            self._timer = loop.call_later(self._window_seconds, self._send)
        return await outcome

    async def score_all(self, items: Sequence[ScoreItem | RewardError]) -> list[Reward | RewardError]:
        """Returns the outcomes of items that are together already."""
        return await self._scorer.score(items)

    async def close(self) -> None:
        """Closes the channel; calls in flight are cancelled."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.close()

    def _send(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        # Those whose caller has gone are not scored.
        batch = [each for each in self._waiting if not each.outcome.done()]
        self._waiting = []
        if batch:
            task = asyncio.create_task(self._scorer.score([each.item for each in batch]))
            self._tasks.add(task)
            task.add_done_callback(lambda task: self._deliver(task, [each.outcome for each in batch]))

    def _deliver(self, task: Scoring, outcomes: Sequence[Outcome]) -> None:
        self._tasks.discard(task)
        for place, outcome in enumerate(outcomes):
            if outcome.done():
                continue
            if task.cancelled():
                outcome.cancel()
            elif error := task.exception():
                outcome.set_exception(error)
            else:
                outcome.set_result(task.result()[place])


_gatherers: dict[asyncio.AbstractEventLoop, dict[Key, Gatherer]] = {}


def gatherer_for(target: str, caller: str, patience: Patience, *, window_seconds: float = WINDOW_SECONDS) -> Gatherer:
    """Returns the one gatherer of the running loop for these arguments; all who call it share its client."""
    for loop in list(_gatherers):
        if loop.is_closed():  # asyncio.run makes a loop for each call
            _gatherers.pop(loop, None)
    of_loop = _gatherers.setdefault(asyncio.get_running_loop(), {})
    key = (target, caller, window_seconds, patience)
    if key not in of_loop:
        of_loop[key] = Gatherer(target, caller, window_seconds, patience)
    return of_loop[key]


async def close_gatherers() -> None:
    """Closes the clients of the running loop; a later call opens new ones."""
    for gatherer in _gatherers.pop(asyncio.get_running_loop(), {}).values():
        await gatherer.close()
