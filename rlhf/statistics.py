"""How far two lists of numbers go together: by their values, and by their ranks."""

import itertools
import math
import statistics
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import StatisticsError, correlation, fmean


def pearson(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Returns the Pearson correlation, None if it is not defined (a constant, or fewer than two points)."""
    try:
        return correlation(x, y)
    except StatisticsError:
        return None


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Returns the rank correlation, equal values sharing their mean rank; None if it is not defined."""
    return pearson(mean_ranks(x), mean_ranks(y))


def mean_ranks(values: Sequence[float]) -> list[float]:
    """Returns the rank of each value from 1, ascending; equal values get the mean of the ranks that they take."""
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


Z_95 = statistics.NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True)
class MeanWithInterval:
    """A mean over completions; the truth lies within half_width of it in 95 % of such evaluations."""

    mean: float
    half_width: float | None
    """None if there are fewer than two prompts: nothing then tells how much prompts differ."""
    count: int
    """Of the values; completions, or pairs of them."""

    def format(self, form: str = "{:.3f}") -> str:
        """Returns "mean ± half_width", each in that format; a sign is asked of the mean alone."""
        text = form.format(self.mean)
        return text if self.half_width is None else f"{text} ± {form.format(self.half_width).lstrip('+')}"


def clustered_mean(values: Sequence[float], clusters: Sequence[int]) -> MeanWithInterval:
    """Returns the mean of the values with a 95 % interval that allows for likeness within clusters.

    The variance of the mean is G / (G - 1) * sum over the G clusters of (sum of their deviations)^2 / n^2; the interval
    is that of a normal distribution.

    Args:
        values: at least one. clusters: the cluster of each.
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


NGRAM_WORDS = 4
"""Words of an n-gram in repeated_ngrams: long enough that ordinary writing hardly repeats one."""


def distinct_2(text: str) -> float | None:
    """Returns the share of different pairs among the pairs of neighbouring words, in (0, 1]; None if there is none.

    Source: Li et al. 2016, arXiv:1510.03055, here for each text on its own.
    """
    pairs = list(itertools.pairwise(text.split()))
    return len(set(pairs)) / len(pairs) if pairs else None


def repeated_ngrams(text: str, num_words: int = NGRAM_WORDS) -> float | None:
    """Returns the share of the text's n-grams of words that have stood in it before, in [0, 1); None if it has none.

    Source: Welleck et al. 2020, arXiv:1908.04319 (seq-rep-n).
    """
    words = text.split()
    ngrams = [tuple(words[start : start + num_words]) for start in range(len(words) - num_words + 1)]
    return 1.0 - len(set(ngrams)) / len(ngrams) if ngrams else None


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


NUM_BINS = 5
"""Bins of an accuracy by something: few enough that each has pairs to speak of."""
NUM_CONFIDENCE_BINS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyBin:
    """The accuracy of the pairs whose key is from `low` to `high`, both included."""

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
    """How often it was."""


def wilson_interval(rate: float, count: int, z: float = Z_95) -> tuple[float, float]:
    """Returns the Wilson score interval of a share `rate` observed over `count` trials; inside [0, 1] also at the ends.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    Raises: ValueError if count is below 1.
    """
    if count < 1:
        raise ValueError(f"count is {count}; an interval needs at least one trial")
    center = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half_width = z * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    # The interval holds the rate; rounding must not put it outside at the ends.
    return max(0.0, min(rate, center - half_width)), min(1.0, max(rate, center + half_width))


def hit(difference: float) -> float:
    """Returns 1 if the chosen side scores higher, 0 if lower, 0.5 if equal."""
    return 1.0 if difference > 0 else 0.5 if difference == 0 else 0.0


def accuracy_bin(keys: Sequence[float], hits: Sequence[float]) -> AccuracyBin:
    """Returns the accuracy over pairs, at least one, as one bin.

    Args:
        keys, hits: of each pair, what it is binned by, and hit().
    """
    accuracy = fmean(hits)
    low, high = wilson_interval(accuracy, len(hits))
    return AccuracyBin(
        low=min(keys), high=max(keys), count=len(hits), accuracy=accuracy, accuracy_low=low, accuracy_high=high
    )


def accuracy_bins(keys: Sequence[float], hits: Sequence[float], num_bins: int = NUM_BINS) -> list[AccuracyBin]:
    """Returns the accuracy by a key, ascending: one bin a value if there are few, else bins of about equal counts."""
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

    Bins are equally wide over [0.5, 1]; empty ones are left out. Looking at the predicted winner, not at the chosen
    side, keeps the diagram from depending on which side a file names first.

    Args:
        probabilities: predicted probability of each pair that its chosen side is preferred.
        targets: the labelled one: 1, or a soft label.
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
    """Returns the mean distance of confidence and accuracy, each bin weighing as many pairs as it has."""
    return sum(each.count * abs(each.confidence - each.accuracy) for each in bins) / sum(each.count for each in bins)


def sigmoid(x: float) -> float:
    """Returns 1 / (1 + exp(-x)), without overflow."""
    if x >= 0:
        return 1.0 / (1.0 + math.exp(-x))
    return math.exp(x) / (1.0 + math.exp(x))
