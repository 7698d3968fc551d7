"""Who is next, and with whom: batches of like lengths, the pace of the work, and a queue that is fair. No torch."""

import heapq
from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

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


def batch_of_first(lengths: Sequence[int], max_batch_tokens: int) -> list[int]:
    """Indices of the planned batch that holds the first of at least one length."""
    return next(batch for batch in plan_batches(lengths, max_batch_tokens) if 0 in batch)


UNMEASURED_RETRY_SECONDS = 1.0
"""When to come again, as long as nothing was measured."""

MIN_RETRY_SECONDS = 0.01

RETRY_ROUNDS = 4
"""Nobody is told to stay away for longer than so many times what the present queue takes."""


class Pace:
    """Tokens per second over the latest runs, and the times at which refused callers were told to come again."""

    KEPT = 0.9
    """What a run counts for when another has followed it."""

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0
        self._latest_retry = float("-inf")

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Counts a run."""
        self._tokens = self.KEPT * self._tokens + num_tokens
        self._seconds = self.KEPT * self._seconds + seconds

    def seconds_for(self, num_tokens: float) -> float | None:
        """How long so many tokens will take; None before anything was measured."""
        return num_tokens * self._seconds / self._tokens if self._tokens else None

    def retry_after(self, wanted_tokens: float, queue_tokens: int, now: float) -> float:
        """In how many seconds one who is refused should come again: one after the other, as fast as room is made.

        So the refused do not come back all at once, to be refused again, and the queue does not run dry either.

        Args:
            wanted_tokens: about what the caller brings.
            queue_tokens: what waits.
            now: seconds of a clock that only goes forward.
        """
        wanted, whole = self.seconds_for(wanted_tokens), self.seconds_for(queue_tokens)
        if wanted is None or whole is None:
            return UNMEASURED_RETRY_SECONDS
        retry = min(max(self._latest_retry, now) + wanted, now + RETRY_ROUNDS * whole)
        self._latest_retry = retry
        return max(MIN_RETRY_SECONDS, retry - now)


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
