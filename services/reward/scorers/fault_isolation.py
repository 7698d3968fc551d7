"""Runs a scorer over a batch so that what fails in it is one item's error, and its neighbours have their rewards."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from rlhf.logs import get_logger
from services.reward.scorers.scorer import ErrorCode, Outcome, Score, ScoreError, ScorerError

log = get_logger(__name__)

MAX_REWARD = 3.4028234663852886e38
"""Of a reward on the wire, which has 32 bits; beyond it is infinity."""

MAX_TIMEOUTS_IN_A_ROW = 3
"""Then the scorer itself hangs, and not on one item: the rest is not tried."""

Run = Callable[[list[Any]], Sequence[Any]]


def run_isolated(run: Run, batch: list[Any], check: Callable[[Any], Any]) -> list[Any]:
    """What `run` answers for each item, checked, or a ScoreError; whatever `run` does.

    A batch that fails is run again in halves, down to the culprit. One that timed out is run item by item, since
    halves would time out as often as they hold the culprit. An UNAVAILABLE is the answer for all.

    Args: check: makes of one answer what is given out for it, an error if it is none.
    """
    try:
        return _run_once(run, batch, check)
    except ScorerError as error:
        fault = ScoreError(error.code, str(error))
    except Exception as error:
        # A scorer may raise anything, and the item's neighbours are to be answered.
        fault = ScoreError(
            ErrorCode.SCORER_FAILED,
            f"the scorer raised {type(error).__name__} on this item; the service's log has the details",
        )
        if len(batch) == 1:
            log.exception("scorer failed")
    if len(batch) == 1 or fault.code is ErrorCode.UNAVAILABLE:
        return [fault] * len(batch)
    if fault.code is ErrorCode.TIMEOUT:
        return _run_singly(run, batch, check)
    middle = len(batch) // 2
    return [*run_isolated(run, batch[:middle], check), *run_isolated(run, batch[middle:], check)]


def _run_once(run: Run, batch: list[Any], check: Callable[[Any], Any]) -> list[Any]:
    answers = run(batch)
    if len(answers) != len(batch):
        raise ScorerError(
            ErrorCode.SCORER_FAILED,
            f"the scorer answered {len(answers)} rewards for {len(batch)} items; it must answer one for each",
        )
    return [check(answer) for answer in answers]


def _run_singly(run: Run, batch: list[Any], check: Callable[[Any], Any]) -> list[Any]:
    answers: list[Any] = []
    timeouts = 0
    for item in batch:
        if timeouts < MAX_TIMEOUTS_IN_A_ROW:
            answers += run_isolated(run, [item], check)
        else:
            answers.append(answers[-1])
            continue
        timed_out = isinstance(answers[-1], ScoreError) and answers[-1].code is ErrorCode.TIMEOUT
        timeouts = timeouts + 1 if timed_out else 0
    return answers


def checked_outcome(outcome: Any) -> Outcome:
    """Returns the outcome if it is one that can be answered, else an error. Never a number that was made up."""
    if isinstance(outcome, ScoreError):
        return outcome
    parts = [outcome]
    if isinstance(outcome, Score):
        spreads = [outcome.spread, *(component.spread for component in outcome.components)]
        parts = [outcome.reward, *(component.reward for component in outcome.components)]
        parts += [spread for spread in spreads if spread is not None]
    for part in parts:
        fault = _fault_of_number(part)
        if fault is not None:
            return fault
    return outcome if isinstance(outcome, Score) else float(outcome)


def checked_probability(outcome: Any) -> float | ScoreError:
    """Returns a judge's answer for a pair if it is a number, else an error."""
    if isinstance(outcome, ScoreError):
        return outcome
    return _fault_of_number(outcome) or float(outcome)


def _fault_of_number(value: Any) -> ScoreError | None:
    try:
        if isinstance(value, str | bytes):
            raise TypeError("a text is no number, also where it spells one")
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return ScoreError(
            ErrorCode.SCORER_FAILED,
            f"the scorer answered a {type(value).__name__}, which is no reward; mend the scorer",
        )
    if math.isfinite(number) and abs(number) <= MAX_REWARD:
        return None
    return ScoreError(
        ErrorCode.NOT_FINITE,
        f"the scorer answered {number}, which is no finite 32-bit number; check the model's weights for NaN, or serve "
        "it with scorer.dtype float32",
    )
