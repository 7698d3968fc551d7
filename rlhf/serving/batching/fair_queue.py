"""A queue that many callers share fairly: whoever has been served least goes next. No torch, no gRPC, no threads."""

import heapq
from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar


@dataclass(eq=False, slots=True, kw_only=True)
class Waiting:
    """What the queue knows of one item that waits. Two of them are never equal."""

    caller: str
    num_tokens: int
    group: Hashable
    """Items of different groups never share a batch."""
    arrived: float
    """When it came, in seconds of a clock that only goes forward."""


Entry = TypeVar("Entry", bound=Waiting)


@dataclass(slots=True)
class _Lane(Generic[Entry]):
    """One caller's items, oldest first, and the tokens it has been served so far, on the queue's clock."""

    served: float
    entries: deque[Entry] = field(default_factory=deque)
    num_tokens: int = 0


class FairQueue(Generic[Entry]):
    """Items in a line for each caller, shared out token by token.

    The clock counts the tokens that each waiting caller has had on average. A caller that comes anew starts there, so
    that idleness earns nothing, or where it left, if it has had more than that. (Start-time fair queueing: Goyal, Vin
    and Cheng 1996, "Start-time fair queueing: a scheduling algorithm for integrated services packet switching
    networks"; the clock is that of weighted fair queueing, so that ever new callers cannot hold an old one back.)
    """

    def __init__(self) -> None:
        self._lanes: dict[str, _Lane[Entry]] = {}
        self._clock = 0.0
        self._num_items = 0
        self._num_tokens = 0

    def __len__(self) -> int:
        return self._num_items

    def __iter__(self) -> Iterator[Entry]:
        """All entries, caller by caller."""
        return (entry for lane in self._lanes.values() for entry in lane.entries)

    @property
    def num_tokens(self) -> int:
        """Tokens that wait, of all callers."""
        return self._num_tokens

    def holds(self, caller: str) -> bool:
        """Whether anything of this caller waits."""
        return caller in self._lanes and bool(self._lanes[caller].entries)

    def tokens_before(self, caller: str, num_tokens: int) -> int:
        """About how many of the waiting tokens go before, or between, `num_tokens` more of this caller.

        Its own, and of each other caller as many as it would have had by then itself.
        """
        own = self._lanes[caller].num_tokens if caller in self._lanes else 0
        others = (lane.num_tokens for name, lane in self._lanes.items() if name != caller)
        return own + sum(min(tokens, own + num_tokens) for tokens in others)

    def add(self, entries: Iterable[Entry]) -> None:
        """Puts entries at the end of their callers' lines."""
        for entry in entries:
            lane = self._lanes.get(entry.caller)
            if lane is None:
                lane = self._lanes[entry.caller] = _Lane(self._clock)
            elif not lane.entries:
                lane.served = max(lane.served, self._clock)
            lane.entries.append(entry)
            lane.num_tokens += entry.num_tokens
            self._num_items += 1
            self._num_tokens += entry.num_tokens

    def window(self, num_tokens: int) -> list[Entry]:
        """The entries that go next, in fair order, all of the first one's group: the first, and more up to num_tokens.

        Of equally served callers the one whose item has waited longest comes first.
        """
        lines = {name: iter(lane.entries) for name, lane in self._lanes.items() if lane.entries}
        heads = [(self._lanes[name].served, (entry := next(line)).arrived, name, entry) for name, line in lines.items()]
        heapq.heapify(heads)
        found: list[Entry] = []
        while heads:
            served, _, name, entry = heads[0]
            if not found or entry.group == found[0].group:
                num_tokens -= entry.num_tokens
                if found and num_tokens < 0:
                    break
                found.append(entry)
                served += entry.num_tokens
            following = next(lines[name], None)
            if following is None:
                heapq.heappop(heads)
            else:
                heapq.heapreplace(heads, (served, following.arrived, name, following))
        return found

    def take(self, entries: Iterable[Entry]) -> None:
        """Removes entries because they are served, and counts them to their callers."""
        num_callers = sum(bool(lane.entries) for lane in self._lanes.values())
        for caller, num_tokens in self._remove(entries).items():
            self._lanes[caller].served += num_tokens
            self._clock += num_tokens / num_callers
        if not self._num_items:
            # All have what they asked for: nobody owes anything.
            self._lanes.clear()
        self._forget_idle()

    def discard(self, entries: Iterable[Entry]) -> None:
        """Removes entries that nobody waits for any more; those that have left the queue already do not matter."""
        self._remove(entries)
        self._forget_idle()

    def _remove(self, entries: Iterable[Entry]) -> dict[str, int]:
        """Removes entries; returns the tokens removed of each caller."""
        gone: dict[str, set[Entry]] = {}
        for entry in entries:
            gone.setdefault(entry.caller, set()).add(entry)
        removed: dict[str, int] = {}
        for caller, theirs in gone.items():
            lane = self._lanes.get(caller)
            if lane is None:
                continue
            before = len(lane.entries), lane.num_tokens
            lane.entries = deque(entry for entry in lane.entries if entry not in theirs)
            lane.num_tokens = sum(entry.num_tokens for entry in lane.entries)
            removed[caller] = before[1] - lane.num_tokens
            self._num_items -= before[0] - len(lane.entries)
            self._num_tokens -= removed[caller]
        return removed

    def _forget_idle(self) -> None:
        """Forgets callers of which nothing waits and who have had no more than the others."""
        self._lanes = {
            caller: lane for caller, lane in self._lanes.items() if lane.entries or lane.served > self._clock
        }
