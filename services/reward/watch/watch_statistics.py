"""The numbers of the watch, as functions of plain lists."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

NGRAM = 3
"""Words, or tokens, that make one n-gram."""

_DECILES = tuple(tenth / 10 for tenth in range(1, 10))
_MOST_VALUES = 10
"""Rewards with no more values than this, such as 0 and 1, are counted value by value."""
_EMPTY = 0.5
"""Added to the count of each bin: one that is empty on one side has a logarithm (Krichevsky and Trofimov 1981)."""


def mean_of(values: Sequence[float]) -> float:
    """Returns the mean; there is at least one value."""
    return math.fsum(values) / len(values)


def std_of(values: Sequence[float]) -> float:
    """Returns the standard deviation over the values themselves (divided by their number)."""
    mean = mean_of(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))


def quantiles_of(values: Sequence[float], shares: Sequence[float]) -> list[float]:
    """Returns for each share the value below which it lies, neighbours joined by straight lines."""
    ordered = sorted(values)
    found = []
    for share in shares:
        place = share * (len(ordered) - 1)
        below = math.floor(place)
        above = min(below + 1, len(ordered) - 1)
        found.append(ordered[below] + (place - below) * (ordered[above] - ordered[below]))
    return found


def repetition_of(units: Sequence[Hashable], n: int = NGRAM) -> float | None:
    """Returns the share of n-grams that stand earlier in the same sequence, 0 to 1; None if it is shorter than n."""
    num_ngrams = len(units) - n + 1
    if num_ngrams < 1:
        return None
    distinct = set(zip(*(units[offset:] for offset in range(n)), strict=False))  # the shortest ends it
    return 1 - len(distinct) / num_ngrams


@dataclass(frozen=True, slots=True)
class Bins:
    """Bins over the real line, and how many of the baseline's values lie in each."""

    edges: tuple[float, ...]
    by_value: bool
    """Whether each edge is a bin of its own, between the bins of what lies beside it."""
    counts: tuple[int, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> "Bins":
        """Returns the bins that the deciles of a baseline part; of a few values, a bin for each and for each gap."""
        distinct = sorted(set(values))
        by_value = len(distinct) <= _MOST_VALUES
        edges = tuple(distinct if by_value else sorted(set(quantiles_of(values, _DECILES))))
        bins = cls(edges, by_value, ())
        return cls(edges, by_value, bins.count(values))

    def count(self, values: Sequence[float]) -> tuple[int, ...]:
        """Returns how many of the values lie in each bin; a value on an edge belongs to the bin below it."""
        counts = [0] * ((2 if self.by_value else 1) * len(self.edges) + 1)
        for value in values:
            place = bisect_left(self.edges, value)
            counts[place + bisect_right(self.edges, value) if self.by_value else place] += 1
        return tuple(counts)

    def drift_of(self, values: Sequence[float]) -> float:
        """Returns how far values are from the baseline's: the population stability index.

        With p and q the shares of baseline and values in each bin, it is the sum of (q - p) ln(q / p): the divergence
        of Jeffreys (1946) over the bins, in the form of credit scoring (Siddiqi, Credit Risk Scorecards, 2006), where
        less than 0.1 counts as no change and more than 0.25 as a shift. A normal distribution that moves by d standard
        deviations has at most d squared. To each count a half is added.
        """
        return stability_index(self.counts, self.count(values))


def stability_index(expected: Sequence[int], found: Sequence[int]) -> float:
    """Returns the sum of (q - p) ln(q / p) over bins, p and q the smoothed shares of two lists of counts."""
    p, q = _shares(expected), _shares(found)
    return math.fsum((after - before) * math.log(after / before) for before, after in zip(p, q, strict=True))


def _shares(counts: Sequence[int]) -> list[float]:
    total = sum(counts) + _EMPTY * len(counts)
    return [(count + _EMPTY) / total for count in counts]
