"""The rewards of one caller from one model version: its first ones, its newest ones, and how these differ."""

import math
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from threading import Lock

from rlhf.client.reward_types import RewardReport
from rlhf.statistics import spearman
from services.reward.watch.report import WatchConfig, warnings_of

_QUANTILES = (0.1, 0.5, 0.9)

Pair = tuple[float, float]
"""The reward of an item, and its held-out reward."""


@dataclass(frozen=True, slots=True)
class Point:
    """What is kept of one item."""

    reward: float
    spread: float | None
    length: int
    is_text: bool
    """Whether the length is in characters; else in tokens."""
    repetition: float | None
    """None if it was not measured, or the completion was too short."""


_DECILES = tuple(tenth / 10 for tenth in range(1, 10))

_MOST_VALUES = 10
"""Up to this many distinct values, such as 0 and 1, each has a bin of its own."""

_EMPTY = 0.5
"""Added to the count of each bin, so that the logarithm of an empty one exists (Krichevsky and Trofimov 1981)."""


@dataclass(frozen=True, slots=True)
class Bins:
    """Bins over the real line, with the counts of the baseline's values."""

    edges: tuple[float, ...]
    by_value: bool
    """Whether each edge is a bin of its own, between the bins of the gaps beside it."""
    counts: tuple[int, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> "Bins":
        """Returns bins with a baseline's deciles as edges; with few distinct values, one bin per value and per gap."""
        distinct = sorted(set(values))
        by_value = len(distinct) <= _MOST_VALUES
        edges = tuple(distinct if by_value else sorted(set(quantiles_of(values, _DECILES))))
        bins = cls(edges, by_value, ())
        return cls(edges, by_value, bins.count(values))

    def count(self, values: Sequence[float]) -> tuple[int, ...]:
        """Returns the number of values in each bin; a value on an edge belongs to the bin below it."""
        counts = [0] * ((2 if self.by_value else 1) * len(self.edges) + 1)
        for value in values:
            place = bisect_left(self.edges, value)
            counts[place + bisect_right(self.edges, value) if self.by_value else place] += 1
        return tuple(counts)

    def drift_of(self, values: Sequence[float]) -> float:
        """Returns the population stability index of values against the baseline.

        With p and q the shares of baseline and values in each bin, it is the sum of (q - p) ln(q / p): the divergence
        of Jeffreys (1946) over the bins, as used in credit scoring (Siddiqi, Credit Risk Scorecards, 2006), where
        less than 0.1 counts as no change and more than 0.25 as a shift. A normal distribution that moves by d standard
        deviations gives at most d squared. A half is added to each count.
        """
        return stability_index(self.counts, self.count(values))


def stability_index(expected: Sequence[int], found: Sequence[int]) -> float:
    """Returns the sum of (q - p) ln(q / p) over bins, with p and q the smoothed shares of two lists of counts."""
    p, q = _shares(expected), _shares(found)
    return math.fsum((after - before) * math.log(after / before) for before, after in zip(p, q, strict=True))


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts) + _EMPTY * len(counts)
    return [(count + _EMPTY) / total for count in counts]


@dataclass(frozen=True, slots=True)
class _Baseline:
    mean: float
    std: float
    bins: Bins

    @classmethod
    def of(cls, rewards: Sequence[float]) -> "_Baseline":
        return cls(fmean(rewards), std_of(rewards), Bins.of(rewards))

    def rise_to(self, rewards: Sequence[float]) -> float | None:
        """Returns how far the mean has risen, in standard deviations; None if the baseline is constant."""
        return (fmean(rewards) - self.mean) / self.std if self.std > 0 else None


class _First:
    """Collects the first values, and turns them into a baseline when there are enough."""

    def __init__(self, num_values: int) -> None:
        self._num_values = num_values
        self._values: list[float] = []
        self.baseline: _Baseline | None = None

    def add(self, value: float) -> None:
        if self.baseline is not None:
            return
        self._values.append(value)
        if len(self._values) == self._num_values:
            self.baseline = _Baseline.of(self._values)
            self._values = []


class RewardSeries:
    """Takes items one by one, in constant time and memory; works out a report when it is asked for one."""

    def __init__(self, model_version: str, caller: str, config: WatchConfig) -> None:
        self._model_version, self._caller, self._config = model_version, caller, config
        self.seen_at = 0.0
        """When its caller last asked, by the watch's clock."""
        self._lock = Lock()
        self._num_items = 0
        self._first = _First(config.baseline_items)
        self._window: deque[Point] = deque(maxlen=config.window_items)
        self._first_rewards = _First(config.heldout_items)
        self._first_heldout = _First(config.heldout_items)
        self._pairs: deque[Pair] = deque(maxlen=config.heldout_items)
        self._num_changes = 0
        self._newest: tuple[int, RewardReport] | None = None

    def add(self, points: Sequence[Point]) -> None:
        """Takes note of items, in the order in which they were scored."""
        with self._lock:
            self._num_changes += 1
            self._num_items += len(points)
            self._window.extend(points)
            for point in points:
                self._first.add(point.reward)

    def add_pair(self, reward: float, heldout: float) -> None:
        """Takes note of an item that the held-out scorer has scored too."""
        with self._lock:
            self._num_changes += 1
            self._pairs.append((reward, heldout))
            self._first_rewards.add(reward)
            self._first_heldout.add(heldout)

    def report(self) -> RewardReport | None:
        """Returns what is known, the same as before if nothing has come since; None before the first item."""
        with self._lock:
            num_changes, num_items = self._num_changes, self._num_items
            if self._newest is not None and self._newest[0] == num_changes:
                return self._newest[1]
            window, pairs = list(self._window), list(self._pairs)
        if not window:
            return None
        # Worked out without the lock: it takes milliseconds, and the next call's rewards must not wait for it.
        report = self._work_out(num_items, window, pairs)
        with self._lock:
            self._newest = (num_changes, report)
        return report

    def _work_out(self, num_items: int, window: Sequence[Point], pairs: Sequence[Pair]) -> RewardReport:
        baseline = self._first.baseline
        rewards = [point.reward for point in window]
        low, middle, high = quantiles_of(rewards, _QUANTILES)
        full = len(window) == self._config.window_items
        gap, heldout_correlation = self._against_heldout(pairs)
        report = RewardReport(
            model_version=self._model_version,
            caller=self._caller,
            item_count=num_items,
            window_item_count=len(window),
            baseline_item_count=min(num_items, self._config.baseline_items),
            baseline_mean=None if baseline is None else baseline.mean,
            reward_mean=fmean(rewards),
            reward_std=std_of(rewards),
            reward_quantiles=(low, middle, high),
            drift=baseline.bins.drift_of(rewards) if baseline is not None and full else None,
            length_correlation=_length_correlation(window),
            repetition_mean=_mean_of_known([point.repetition for point in window]),
            spread_mean=_mean_of_known([point.spread for point in window]),
            heldout_gap=gap,
            heldout_correlation=heldout_correlation,
            warnings=(),
        )
        return replace(report, warnings=tuple(warnings_of(report, self._config.thresholds)))

    def _against_heldout(self, pairs: Sequence[Pair]) -> tuple[float | None, float | None]:
        """Returns the gap and the rank correlation; neither before the baseline of pairs is whole."""
        first, first_heldout = self._first_rewards.baseline, self._first_heldout.baseline
        if first is None or first_heldout is None:
            return None, None
        rewards, heldout = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        rise, heldout_rise = first.rise_to(rewards), first_heldout.rise_to(heldout)
        gap = None if rise is None or heldout_rise is None else rise - heldout_rise
        return gap, spearman(rewards, heldout)


def _length_correlation(window: Sequence[Point]) -> float | None:
    """Characters and tokens cannot be ranked together: of a mixed window the newest item's kind counts."""
    alike = [point for point in window if point.is_text == window[-1].is_text]
    return spearman([point.reward for point in alike], [float(point.length) for point in alike])


def _mean_of_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def std_of(values: Sequence[float]) -> float:
    """Returns the population standard deviation; statistics.pstdev, which works in fractions, takes longer."""
    return math.dist(values, [fmean(values)] * len(values)) / math.sqrt(len(values))


def quantiles_of(values: Sequence[float], shares: Sequence[float]) -> list[float]:
    """Returns the quantile at each share in [0, 1], interpolated linearly between neighbours.

    Between equal neighbours it is exactly their value, as the edges of bins need; statistics.quantiles rounds there.
    """
    ordered = sorted(values)
    found = []
    for share in shares:
        place = share * (len(ordered) - 1)
        below = math.floor(place)
        above = min(below + 1, len(ordered) - 1)
        found.append(ordered[below] + (place - below) * (ordered[above] - ordered[below]))
    return found
