"""From the prompts and completions that frameworks hand over, as text or as messages, to items of a score call."""

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from rlhf.client.base import call_when_available
from rlhf.client.reward import Reward, RewardClient, RewardError, ScoreBatch, ScoreItem, in_batches

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
