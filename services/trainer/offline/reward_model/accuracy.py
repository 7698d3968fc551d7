"""How often scores rank pairs right: with an interval, by a key such as a margin, and against what was predicted."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from rlhf.statistics import Z_95

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
