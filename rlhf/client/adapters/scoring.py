"""What the adapters share: items from the texts or messages that frameworks hand over, and scores for many at once."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeAlias

from rlhf.client.patience import Patience
from rlhf.client.reward import RewardClient, in_batches
from rlhf.client.reward_types import Reward, RewardError, ScoreItem

Text: TypeAlias = "str | Sequence[Any]"
"""A text, or a list of messages: mappings or objects with `role` and `content`."""


class _UnusableError(Exception):
    """A message that the service cannot be sent; the argument says why."""


def make_item(prompt: Text, completion: Text, *, raw: bool = False) -> ScoreItem | RewardError:
    """Returns what to send for a completion, or the error "invalid_item" if it cannot be sent whole.

    Two texts become a text item; as soon as one of them is a list of messages, both become a conversation, a text
    being what the user or the assistant said.

    Args:
        raw: two texts have been through the chat template; send them as they are.
    """
    try:
        if isinstance(prompt, str) and isinstance(completion, str):
            return ScoreItem.raw(prompt, completion) if raw else ScoreItem.text(prompt, completion)
        messages = [*_messages(prompt, "user"), *_messages(completion, "assistant")]
        return ScoreItem.conversation([_plain(message) for message in messages])
    except _UnusableError as error:
        return RewardError("", "invalid_item", str(error))


def _messages(text: Text, role: str) -> Sequence[Any]:
    return [{"role": role, "content": text}] if isinstance(text, str) else text


def _plain(message: Any) -> dict[str, str]:
    role, content = _field(message, "role"), _field(message, "content")
    if not isinstance(role, str):
        raise _UnusableError(f"a message has the role {role!r}; give each a role and a content")
    if _field(message, "tool_calls"):
        raise _UnusableError(f"a message of the {role} calls tools, which a reward service does not read")
    if content is None:
        return {"role": role, "content": ""}
    if isinstance(content, str):
        return {"role": role, "content": content}
    return {"role": role, "content": "".join(_part_text(part, role) for part in content)}


def _part_text(part: Any, role: str) -> str:
    if _field(part, "type") == "text":
        return str(_field(part, "text"))
    raise _UnusableError(f"a message of the {role} has a part of type {_field(part, 'type')!r}; only text is scored")


def _field(message: Any, name: str) -> Any:
    return message.get(name) if isinstance(message, Mapping) else getattr(message, name, None)


class NoRewardError(Exception):
    """A completion has no reward, and the framework knows no way to say so."""

    def __init__(self, error: RewardError) -> None:
        super().__init__(f"the completion has no reward: {error.code}: {error.message}")
        self.error = error


MAX_CONCURRENT_CALLS = 4


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
        sent = [item for item in items if isinstance(item, ScoreItem)]
        results: list[Reward | RewardError] = []
        if sent:
            size = min(self._batch_items, await self._limit())
            async with aclosing(in_batches(sent, size, self._score_batch, MAX_CONCURRENT_CALLS)) as batches:
                async for batch in batches:
                    results += batch
        scored = iter(results)
        return [item if isinstance(item, RewardError) else next(scored) for item in items]

    async def _score_batch(self, items: Sequence[ScoreItem]) -> list[Reward | RewardError]:
        return await self._client.score_patiently(items, self._patience)

    async def _limit(self) -> int:
        """Returns how many items the service takes in one call, asked once."""
        if not self._max_items:
            model = await self._patience.ask(self._client, self._client.get_model)
            self._max_items = model.max_items or self._batch_items
        return self._max_items


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
            task.add_done_callback(lambda task: self._hand_out(task, [each.outcome for each in batch]))

    def _hand_out(self, task: Scoring, outcomes: Sequence[Outcome]) -> None:
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
