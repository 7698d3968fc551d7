"""Statistics that several rooms share: means with intervals, correlations, repetition in texts, the sigmoid."""

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist, StatisticsError, correlation, fmean

Z_95 = NormalDist().inv_cdf(0.975)


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
    mean = fmean(values)
    deviations: defaultdict[int, float] = defaultdict(float)
    for value, cluster in zip(values, clusters, strict=True):
        deviations[cluster] += value - mean
    num_clusters = len(deviations)
    if num_clusters < 2:
        return MeanWithInterval(mean, None, len(values))
    squares = math.fsum(total * total for total in deviations.values())
    variance = num_clusters / (num_clusters - 1) * squares / len(values) ** 2
    return MeanWithInterval(mean, Z_95 * math.sqrt(variance), len(values))


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
    pairs = list(pairwise(text.split()))
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


def sigmoid(x: float) -> float:
    """Returns 1 / (1 + exp(-x)), without overflow."""
    if x >= 0:
        return 1.0 / (1.0 + math.exp(-x))
    return math.exp(x) / (1.0 + math.exp(x))
