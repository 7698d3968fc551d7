"""From the probabilities of a judge's first token to the probability of an answer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from services.reward.scorers.judge.prompts import Question
from services.reward.scorers.scorer import ErrorCode, ScoreError


@dataclass(frozen=True, slots=True)
class FirstTokens:
    """What is known of the distribution of a judge's first token; each token is there once."""

    logprobs: list[tuple[str, float]]
    """The token's text, and its log-probability in nats."""
    is_likeliest: bool
    """Whether these are the likeliest tokens, so that what is missing can be left out; else any may be missing."""


class JudgeBackend(Protocol):
    """Where a judge is asked. Its methods run in one event loop."""

    async def connect(self) -> str:
        """Returns what tells the served weights apart, if that can be known, else "". Raises: ConfigError."""

    async def ask(self, questions: Sequence[Question]) -> list[FirstTokens | ScoreError]:
        """Returns what is known of each answer. Raises: ScorerError, UNAVAILABLE, if none can be had now."""

    async def close(self) -> None:
        """Ends the connections."""


def probability_of_first(
    tokens: FirstTokens, question: Question, *, min_answer_probability: float, max_uncertainty: float
) -> float | ScoreError:
    """Returns the probability of the question's first answer, given that it is one of the two.

    Of tokens that are not the likeliest, the missing ones may be either answer: the result is the middle of what is
    possible, and an error if that leaves more than max_uncertainty to both sides.
    """
    if any(math.isnan(logprob) or logprob > 1e-3 for _, logprob in tokens.logprobs):
        return ScoreError(ErrorCode.SCORER_FAILED, "the judge's answer has a log-probability that is none")
    mass = {question.first: 0.0, question.second: 0.0, None: 0.0}
    for token, logprob in tokens.logprobs:
        mass[question.answer_of(token)] += math.exp(logprob)
    first, second = mass[question.first], mass[question.second]
    if first + second < min_answer_probability:
        return _no_answer(tokens, question, first + second, min_answer_probability)
    if tokens.is_likeliest:
        return first / (first + second)
    unseen = max(1.0 - first - second - mass[None], 0.0)
    possible = first + second + unseen
    if unseen / (2 * possible) > max_uncertainty:
        return ScoreError(
            ErrorCode.SCORER_FAILED,
            f"tokens of probability {unseen:.3g} were not drawn, which leaves {unseen / (2 * possible):.2g} to both "
            f"sides of the reward, more than judge.max_uncertainty = {max_uncertainty:g}; raise judge.samples",
        )
    return (first + unseen / 2) / possible


def _no_answer(tokens: FirstTokens, question: Question, found: float, needed: float) -> ScoreError:
    likeliest = max(tokens.logprobs, key=lambda each: each[1], default=None)
    instead = "" if likeliest is None else f"; its likeliest first token is {likeliest[0][:32]!r}"
    return ScoreError(
        ErrorCode.SCORER_FAILED,
        f"the judge answers '{question.first}' or '{question.second}' with probability {found:.3g}, less than "
        f"judge.min_answer_probability = {needed:g}{instead}; use a judge that follows instructions",
    )
