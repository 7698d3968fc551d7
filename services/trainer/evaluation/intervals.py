"""Means with 95 % intervals that know that completions of one prompt are alike."""

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

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
