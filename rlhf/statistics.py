"""Statistics of scores and texts: means with intervals, correlation, repetition, drift, accuracy and calibration."""

import itertools
import math
import statistics
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import StatisticsError, correlation, fmean


def mean_of(values: Sequence[float]) -> float:
    """Returns the mean of at least one value."""
    return math.fsum(values) / len(values)


def std_of(values: Sequence[float]) -> float:
    """Returns the population standard deviation (divided by the number of values)."""
    mean = mean_of(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))


def quantiles_of(values: Sequence[float], shares: Sequence[float]) -> list[float]:
    """Returns the quantile at each share in [0, 1], interpolated linearly between neighbours."""
    ordered = sorted(values)
    found = []
    for share in shares:
        place = share * (len(ordered) - 1)
        below = math.floor(place)
        above = min(below + 1, len(ordered) - 1)
        found.append(ordered[below] + (place - below) * (ordered[above] - ordered[below]))
    return found


Z_95 = statistics.NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True)
class MeanWithInterval:
    """A mean with its 95 % confidence interval, mean - half_width to mean + half_width."""

    mean: float
    half_width: float | None
    """None if there are fewer than two clusters, whose spread is then unknown."""
    count: int
    """Number of values."""

    def format(self, form: str = "{:.3f}") -> str:
        """Returns "mean ± half_width", each in that format; only the mean has a plus sign."""
        text = form.format(self.mean)
        return text if self.half_width is None else f"{text} ± {form.format(self.half_width).lstrip('+')}"


def clustered_mean(values: Sequence[float], clusters: Sequence[int]) -> MeanWithInterval:
    """Returns the mean of the values with a 95 % interval that allows for correlation within clusters.

    The variance of the mean is G / (G - 1) * sum over the G clusters of (sum of their deviations)^2 / n^2; the interval
    is that of a normal distribution.

    Args:
        values: at least one.
        clusters: the cluster of each value, such as its prompt.
    """
    mean = statistics.fmean(values)
    deviations: defaultdict[int, float] = defaultdict(float)
    for value, cluster in zip(values, clusters, strict=True):
        deviations[cluster] += value - mean
    num_clusters = len(deviations)
    if num_clusters < 2:
        return MeanWithInterval(mean, None, len(values))
    squares = math.fsum(total * total for total in deviations.values())
    variance = num_clusters / (num_clusters - 1) * squares / len(values) ** 2
    return MeanWithInterval(mean, Z_95 * math.sqrt(variance), len(values))


def wilson_interval(rate: float, count: int, z: float = Z_95) -> tuple[float, float]:
    """Returns the Wilson score interval of a share `rate` observed over `count` trials; always inside [0, 1].

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    Raises: ValueError if count is below 1.
    """
    if count < 1:
        raise ValueError(f"count is {count}; an interval needs at least one trial")
    center = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half_width = z * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    # The interval contains the rate; rounding must not change that at the ends.
    return max(0.0, min(rate, center - half_width)), min(1.0, max(rate, center + half_width))


def pearson(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Returns the Pearson correlation; None if it is undefined (a constant, or fewer than two points)."""
    try:
        return correlation(x, y)
    except StatisticsError:
        return None


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Returns Spearman's rank correlation, with mean ranks for equal values; None if it is undefined."""
    return pearson(mean_ranks(x), mean_ranks(y))


def mean_ranks(values: Sequence[float]) -> list[float]:
    """Returns the rank of each value from 1, ascending; equal values get the mean of their ranks."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    ranks = [0.0] * len(values)
    first = 0
    while first < len(order):
        last = first
        while last + 1 < len(order) and values[order[last + 1]] == values[order[first]]:
            last += 1
        for index in order[first : last + 1]:
            ranks[index] = (first + last) / 2 + 1
        first = last + 1
    return ranks


NGRAM = 3
"""Default length of an n-gram in repetition_of, in words or tokens."""

NGRAM_WORDS = 4
"""Words of an n-gram in repeated_ngrams: so long that ordinary writing rarely repeats one."""


def distinct_2(text: str) -> float | None:
    """Returns the share of distinct bigrams among the text's bigrams of words, in (0, 1]; None if there is none.

    Source: Li et al. 2016, arXiv:1510.03055, here for each text on its own.
    """
    pairs = list(itertools.pairwise(text.split()))
    return len(set(pairs)) / len(pairs) if pairs else None


def repetition_of(units: Sequence[Hashable], n: int = NGRAM) -> float | None:
    """Returns the share of n-grams that occur earlier in the same sequence, in [0, 1); None if it is shorter than n."""
    num_ngrams = len(units) - n + 1
    if num_ngrams < 1:
        return None
    distinct = set(zip(*(units[offset:] for offset in range(n)), strict=False))  # the shortest slice ends it
    return 1 - len(distinct) / num_ngrams


def repeated_ngrams(text: str, num_words: int = NGRAM_WORDS) -> float | None:
    """Returns the share of the text's n-grams of words that occur earlier in it, in [0, 1); None if it has none.

    Source: Welleck et al. 2020, arXiv:1908.04319 (seq-rep-n).
    """
    return repetition_of(text.split(), num_words)


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


NUM_BINS = 5
"""Bins of an accuracy by a key: few, so that each has enough pairs."""

NUM_CONFIDENCE_BINS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyBin:
    """The accuracy on the pairs whose key is from `low` to `high`, both included."""

    low: float
    high: float
    count: int
    """Pairs, at least 1."""
    accuracy: float
    accuracy_low: float
    """Lower end of its 95 % interval (Wilson)."""
    accuracy_high: float
    """Upper end of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfidenceBin:
    """The pairs whose winner was predicted with a probability from `low` to `high`."""

    low: float
    high: float
    count: int
    """Pairs, at least 1."""
    confidence: float
    """Mean predicted probability that the predicted winner is preferred, in [0.5, 1]."""
    accuracy: float
    """How often it is."""


def hit(difference: float) -> float:
    """Returns 1 if the chosen side scores higher, 0 if lower, 0.5 if equal."""
    return 1.0 if difference > 0 else 0.5 if difference == 0 else 0.0


def accuracy_bin(keys: Sequence[float], hits: Sequence[float]) -> AccuracyBin:
    """Returns the accuracy over pairs, at least one, as one bin.

    Args:
        keys: the key of each pair.
        hits: hit() of each pair.
    """
    accuracy = fmean(hits)
    low, high = wilson_interval(accuracy, len(hits))
    return AccuracyBin(
        low=min(keys), high=max(keys), count=len(hits), accuracy=accuracy, accuracy_low=low, accuracy_high=high
    )


def accuracy_bins(keys: Sequence[float], hits: Sequence[float], num_bins: int = NUM_BINS) -> list[AccuracyBin]:
    """Returns the accuracy by a key, ascending: one bin per value if there are few, else bins of about equal counts."""
    order = sorted(range(len(keys)), key=lambda index: keys[index])
    values = sorted(set(keys))
    if len(values) <= num_bins:
        parts = [[index for index in order if keys[index] == value] for value in values]
    else:
        edges = [round(len(order) * part / num_bins) for part in range(num_bins + 1)]
        parts = [order[first:last] for first, last in pairwise(edges) if last > first]
    return [accuracy_bin([keys[index] for index in part], [hits[index] for index in part]) for part in parts]


def confidence_bins(
    probabilities: Sequence[float], targets: Sequence[float], num_bins: int = NUM_CONFIDENCE_BINS
) -> list[ConfidenceBin]:
    """Returns the reliability diagram: predicted probability of the predicted winner against how often it won.

    Bins are equally wide over [0.5, 1]; empty ones are left out. The predicted winner is used, not the chosen side, so
    that the diagram does not depend on which side a file names first.

    Args:
        probabilities: predicted probability of each pair that its chosen side is preferred.
        targets: labelled probability of the same: 1, or a soft label.
    Source: Guo et al. 2017, "On calibration of modern neural networks", arXiv:1706.04599.
    """
    width = 0.5 / num_bins
    members: dict[int, list[tuple[float, float]]] = {}
    for probability, target in zip(probabilities, targets, strict=True):
        confidence = max(probability, 1.0 - probability)
        won = target if probability > 0.5 else 1.0 - target if probability < 0.5 else 0.5
        members.setdefault(min(num_bins - 1, int((confidence - 0.5) / width)), []).append((confidence, won))
    return [
        ConfidenceBin(
            low=0.5 + index * width,
            high=0.5 + (index + 1) * width,
            count=len(pairs),
            confidence=fmean(confidence for confidence, _ in pairs),
            accuracy=fmean(won for _, won in pairs),
        )
        for index, pairs in sorted(members.items())
    ]


def expected_calibration_error(bins: Sequence[ConfidenceBin]) -> float:
    """Returns the mean distance of confidence and accuracy over bins, weighted by their pairs."""
    return sum(each.count * abs(each.confidence - each.accuracy) for each in bins) / sum(each.count for each in bins)


def sigmoid(x: float) -> float:
    """Returns 1 / (1 + exp(-x)), without overflow."""
    if x >= 0:
        return 1.0 / (1.0 + math.exp(-x))
    return math.exp(x) / (1.0 + math.exp(x))
