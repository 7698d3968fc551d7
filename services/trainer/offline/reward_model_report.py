"""How good a reward model is: its accuracy on pairs it has not seen, and what its scores go with."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import StatisticsError, correlation

Z_95 = 1.959964


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelReport:
    """What a training led to. Numbers that need held-out pairs are None where there are none."""

    num_train_pairs: int
    num_heldout_pairs: int
    num_too_long: int
    """Pairs left out because a side was too long."""
    train_loss: float
    """Mean Bradley-Terry loss over the last epoch, as it was trained on, in nats per pair."""
    train_accuracy: float
    """Share of the last epoch's pairs that were ranked right before they were trained on."""
    heldout_accuracy: float | None
    """Share of held-out pairs whose chosen side scores higher; equal scores count half."""
    heldout_accuracy_low: float | None
    """Lower end of its 95 % interval (Wilson)."""
    heldout_accuracy_high: float | None
    """Upper end of its 95 % interval (Wilson)."""
    length_correlation: float | None
    """Pearson correlation of score and completion length over held-out completions; None if either is constant."""
    reward_mean: float
    """Mean score of the training completions before normalisation; it is subtracted from every score served."""
    reward_std: float
    """Their standard deviation; every score served is divided by it."""
    seconds: float
    """Wall time, loading included."""


def wilson_interval(rate: float, count: int, z: float = Z_95) -> tuple[float, float]:
    """Returns the Wilson score interval of a share `rate` observed over `count` trials; inside [0, 1] also at the ends.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    Raises: ValueError if count is below 1.
    """
    if count < 1:
        raise ValueError(f"count is {count}; an interval needs at least one trial")
    center = (rate + z * z / (2 * count)) / (1 + z * z / count)
    half_width = z * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return max(0.0, center - half_width), min(1.0, center + half_width)


def pairwise_accuracy(margins: Sequence[float]) -> float:
    """Returns the share of margins (chosen minus rejected score) above 0; a margin of 0 counts half."""
    return sum(1.0 if margin > 0 else 0.5 if margin == 0 else 0.0 for margin in margins) / len(margins)


def pearson(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Returns the Pearson correlation, None if it is not defined (a constant, or fewer than two points)."""
    try:
        return correlation(x, y)
    except StatisticsError:
        return None
