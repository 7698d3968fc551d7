"""Repeated calls: one with the id of an earlier call gets the earlier answer, and is computed and counted once.

A digest of what calls say distinguishes a repeat from another call with the same id.
"""

import asyncio
import time
from array import array
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from blake3 import blake3

from rlhf.errors import InvalidRequestError
from services.reward.comparing import ComparisonPair
from services.reward.scorers.scorer import ChatMessage, Conversation, Item, RawPair, TextPair, TokenPair, TokenSequence


def digest_of(content: Sequence[Item | ComparisonPair | None]) -> bytes:
    """Returns the digest of the items or pairs: equal for equal ones in the same order, and for no others."""
    hasher = blake3()
    for entry in content:
        _add(hasher, entry)
    return hasher.digest()


def _add(hasher: Any, value: object) -> None:
    """Adds the value's kind, the number of its parts, and the parts, so that no two values read alike."""
    match value:
        case str():
            # A lone surrogate, which JSON can spell, is refused later and by item; here it has to have a digest.
            _add_bytes(hasher, value.encode("utf-8", "surrogatepass"))
        case float():
            _add_bytes(hasher, array("d", [value]).tobytes())
        case TextPair():
            _add_all(hasher, value, [value.prompt, value.completion])
        case RawPair():
            _add_all(hasher, value, [value.prompt, value.completion, float(value.add_special_tokens)])
        case ChatMessage():
            _add_all(hasher, value, [value.role, value.content])
        case Conversation():
            _add_all(hasher, value, value.messages)
        case TokenPair():
            _add_all(hasher, value, [])
            _add_ids(hasher, value.prompt_ids)
            _add_ids(hasher, value.completion_ids)
        case TokenSequence():
            _add_all(hasher, value, [])
            _add_ids(hasher, value.ids)
        case ComparisonPair():
            _add_all(hasher, value, [value.first, value.second, value.margin])
        case None:
            _add_all(hasher, value, [])


def _add_all(hasher: Any, value: object, parts: Sequence[object]) -> None:
    hasher.update(f"{type(value).__name__} {len(parts)};".encode())
    for part in parts:
        _add(hasher, part)


def _add_ids(hasher: Any, ids: Sequence[int]) -> None:
    # As text: JSON's integers have no bounds, and one out of range is refused later and by item.
    _add_bytes(hasher, ",".join(map(str, ids)).encode())


def _add_bytes(hasher: Any, data: bytes) -> None:
    hasher.update(f"{len(data)};".encode())
    hasher.update(data)


Answer = TypeVar("Answer")

MAX_KEPT_ANSWERS = 4096
MAX_KEPT_ITEMS = 100_000
"""Over all kept answers: some 10 MB."""
MAX_KEPT_SECONDS = 300.0
"""Longer than any client of ours goes on repeating."""


@dataclass(frozen=True, slots=True)
class CallKey:
    """Names a call: ids are unique among the calls of one caller only."""

    caller: str
    request_id: str


@dataclass(slots=True)
class _Flight(Generic[Answer]):
    """A call that is being answered, and how many wait for it."""

    content: bytes
    task: asyncio.Task[Answer]
    num_waiting: int = 0


@dataclass(frozen=True, slots=True)
class _Kept(Generic[Answer]):
    content: bytes
    answer: Answer
    num_items: int
    time: float


class Repeats(Generic[Answer]):
    """Answers each call once, however often it is sent. For one event loop."""

    def __init__(
        self,
        num_items_of: Callable[[Answer], int],
        on_repeat: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Args: how many items an answer has; what is called for each repeat; what tells the seconds."""
        self._num_items_of = num_items_of
        self._on_repeat = on_repeat
        self._clock = clock
        self._flights: dict[CallKey, _Flight[Answer]] = {}
        self._kept: OrderedDict[CallKey, _Kept[Answer]] = OrderedDict()
        self._num_kept_items = 0

    @property
    def num_kept(self) -> int:
        """Answers that a repeat would get."""
        return len(self._kept)

    async def share(self, key: CallKey, content: bytes, work: Callable[[], Awaitable[Answer]]) -> Answer:
        """The answer of the call: its own, or that of the call it repeats.

        The work is cancelled when nobody waits for it any more. A call that fails or is cancelled is not kept.

        Args: content: digest of what the call says, by which a repeat is told from another call with the same id.
        Raises: InvalidRequestError if the id was used for another content; what `work` raises.
        """
        self._forget_old()
        kept = self._kept.get(key)
        if kept is not None:
            _require_same(key, kept.content, content)
            self._on_repeat()
            return kept.answer
        flight = self._flights.get(key)
        if flight is not None:
            _require_same(key, flight.content, content)
            self._on_repeat()
        else:
            flight = self._begin(key, content, work)
        return await self._wait(key, flight)

    def _begin(self, key: CallKey, content: bytes, work: Callable[[], Awaitable[Answer]]) -> _Flight[Answer]:
        async def run() -> Answer:
            return await work()

        flight = _Flight(content, asyncio.get_running_loop().create_task(run()))
        self._flights[key] = flight
        flight.task.add_done_callback(lambda task: self._end(key, flight))
        return flight

    async def _wait(self, key: CallKey, flight: _Flight[Answer]) -> Answer:
        flight.num_waiting += 1
        try:
            # Not the task itself: one that leaves would cancel it for the others.
            await asyncio.wait([flight.task])
            return flight.task.result()
        finally:
            flight.num_waiting -= 1
            if flight.num_waiting == 0 and not flight.task.done():
                # At once, so that a repeat that comes now begins anew rather than joins what is ending.
                self._drop(key, flight)
                flight.task.cancel()

    def _end(self, key: CallKey, flight: _Flight[Answer]) -> None:
        self._drop(key, flight)
        if flight.task.cancelled() or flight.task.exception() is not None:
            return
        answer = flight.task.result()
        kept = _Kept(flight.content, answer, self._num_items_of(answer), self._clock())
        self._kept[key] = kept
        self._num_kept_items += kept.num_items
        self._forget_old()

    def _drop(self, key: CallKey, flight: _Flight[Answer]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    def _forget_old(self) -> None:
        """Drops what is beyond the bounds, oldest first."""
        expired = self._clock() - MAX_KEPT_SECONDS
        while self._kept:
            oldest = next(iter(self._kept.values()))
            fits = len(self._kept) <= MAX_KEPT_ANSWERS and self._num_kept_items <= MAX_KEPT_ITEMS
            if fits and oldest.time > expired:
                return
            self._kept.popitem(last=False)
            self._num_kept_items -= oldest.num_items


def _require_same(key: CallKey, known: bytes, content: bytes) -> None:
    if known != content:
        raise InvalidRequestError(
            f"request_id is '{key.request_id}', which was another call's with other content; give every call an id of "
            "its own, and the same id to repetitions of the same call alone"
        )
