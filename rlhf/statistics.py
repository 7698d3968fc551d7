"""How far two lists of numbers go together: by their values, and by their ranks."""

from collections.abc import Sequence
from statistics import StatisticsError, correlation


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
