"""Comparing two completions: Bradley and Terry's probability that the first is the better one."""

import math
from dataclasses import dataclass

from rlhf.statistics import sigmoid
from services.reward.scorers.scorer import ErrorCode, Item, Outcome, ScoreError, reward_of


@dataclass(frozen=True, slots=True)
class ComparisonPair:
    """Two completions to compare; None stands for one that the caller left out."""

    first: Item | None
    second: Item | None
    margin: float = 0.0
    """By how much, in the units of the model's logits, the first must be ahead to count as equal."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How two completions compare."""

    probability: float
    """That people prefer the first."""
    first_reward: float | None = None
    """None: the scorer was asked for the pair and gave no rewards."""
    second_reward: float | None = None


ComparisonOutcome = Comparison | ScoreError


def compare_rewards(first: Outcome, second: Outcome, margin: float, logit_scale: float) -> ComparisonOutcome:
    """Returns the probability sigmoid((first - second) * logit_scale - margin), or whose error it is."""
    fault = fault_of_either(first, second)
    if fault is not None:
        return fault
    assert not isinstance(first, ScoreError)
    assert not isinstance(second, ScoreError)
    rewards = reward_of(first), reward_of(second)
    return Comparison(sigmoid((rewards[0] - rewards[1]) * logit_scale - margin), *rewards)


def compare_probability(outcome: float | ScoreError, margin: float) -> ComparisonOutcome:
    """Returns what a judge's probability becomes when the first must be ahead by a margin: its odds times e^-margin."""
    if isinstance(outcome, ScoreError):
        return outcome
    if not 0 <= outcome <= 1:
        return ScoreError(
            ErrorCode.NOT_FINITE, f"the scorer answered {outcome}, which is no probability; mend the scorer"
        )
    if margin == 0 or outcome in (0, 1):
        return Comparison(float(outcome))
    return Comparison(sigmoid(math.log(outcome) - math.log1p(-outcome) - margin))


def fault_of_either(first: object, second: object) -> ScoreError | None:
    """Returns the error of the first that is one, with the name of its place before its message."""
    for place, value in (("first", first), ("second", second)):
        if isinstance(value, ScoreError):
            return ScoreError(value.code, f"{place}: {value.message}")
    return None


def fault_of_margin(margin: float) -> ScoreError | None:
    """Says that a margin is not a finite number, or returns None."""
    if math.isfinite(margin):
        return None
    return ScoreError(ErrorCode.INVALID_ITEM, f"margin is {margin}; send a finite number, or leave it out for 0")
