"""What goes wrong with one item of a batch is that item's error; its neighbours have their rewards."""

from typing import Any

import pytest

from rlhf.client.reward_types import ComponentReward
from services.reward.scorers.fault_isolation import MAX_TIMEOUTS_IN_A_ROW, checked_outcome, run_isolated
from services.reward.scorers.scorer import ErrorCode, Score, ScoreError, ScorerError
from tests.support.number_scorer import NumberScorer, loaded, text


async def outcomes_of(*completions: str) -> tuple[list[Any], NumberScorer]:
    scorer = NumberScorer()
    async with loaded(scorer) as (core, _):
        answer = await core.score([text(completion) for completion in completions])
    return answer.outcomes, scorer


@pytest.mark.parametrize(
    ("culprit", "code", "message"),
    [
        ("raises", ErrorCode.SCORER_FAILED, "the scorer raised ValueError on this item; the service's log"),
        ("lost", ErrorCode.SCORER_FAILED, "the scorer answered 0 rewards for 1 items"),
        ("none", ErrorCode.SCORER_FAILED, "the scorer answered a NoneType, which is no reward"),
        ("nan", ErrorCode.NOT_FINITE, "the scorer answered nan, which is no finite 32-bit number"),
        ("1e39", ErrorCode.NOT_FINITE, "the scorer answered 1e+39, which is no finite 32-bit number"),
        ("slow", ErrorCode.TIMEOUT, "took too long"),
        ("unreadable", ErrorCode.SCORER_FAILED, "the scorer raised ValueError as it read the item"),
    ],
)
async def test_only_the_culprit_has_an_error(culprit: str, code: ErrorCode, message: str):
    outcomes, scorer = await outcomes_of("1", "2", culprit, "3", "4", "5", "6")
    fault = outcomes.pop(2)
    assert outcomes == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert fault.code is code
    assert message in fault.message
    assert len(scorer.batches[0]) >= 6  # they did share a batch


async def test_two_culprits_are_both_found():
    outcomes, _ = await outcomes_of("1", "raises", "2", "3", "lost", "4")
    assert [isinstance(outcome, ScoreError) for outcome in outcomes] == [False, True, False, False, True, False]
    assert [outcome for outcome in outcomes if not isinstance(outcome, ScoreError)] == [1.0, 2.0, 3.0, 4.0]


async def test_the_next_call_works_after_one_that_failed():
    async with loaded(NumberScorer()) as (core, registry):
        (fault,) = (await core.score([text("raises")])).outcomes
        assert fault.code is ErrorCode.SCORER_FAILED
        assert (await core.score([text("1")])).outcomes == [1.0]
        assert registry.get_sample_value("rlhf_reward_errors_total", {"code": "scorer_failed"}) == 1


async def test_a_dependency_that_is_away_is_asked_once_for_the_whole_batch():
    outcomes, scorer = await outcomes_of("1", "2", "away", "3")
    assert outcomes == [ScoreError(ErrorCode.UNAVAILABLE, "the judge is away")] * 4
    assert len(scorer.batches) == 1


async def test_a_scorer_that_hangs_on_everything_is_given_up():
    outcomes, scorer = await outcomes_of(*["slow"] * 20)
    assert outcomes == [ScoreError(ErrorCode.TIMEOUT, "took too long")] * 20
    assert len(scorer.batches) == 1 + MAX_TIMEOUTS_IN_A_ROW


def test_a_single_culprit_among_many_costs_few_runs():
    runs: list[int] = []

    def run(batch: list[int]) -> list[float]:
        runs.append(len(batch))
        if 100 in batch:
            raise ValueError("no")
        return [float(item) for item in batch]

    answers = run_isolated(run, list(range(256)), checked_outcome)
    assert [index for index, answer in enumerate(answers) if isinstance(answer, ScoreError)] == [100]
    # The whole, and two halves at each of 8 levels down to the culprit.
    assert len(runs) == 1 + 2 * 8


def test_an_error_of_a_part_keeps_its_kind():
    def run(batch: list[int]) -> list[float]:
        if 2 in batch:
            raise ScorerError(ErrorCode.TOO_LONG if len(batch) == 1 else ErrorCode.SCORER_FAILED, "too long")
        return [float(item) for item in batch]

    assert run_isolated(run, [1, 2, 3], checked_outcome) == [1.0, ScoreError(ErrorCode.TOO_LONG, "too long"), 3.0]


@pytest.mark.parametrize(
    "outcome",
    [
        Score(float("nan")),
        Score(1.0, spread=float("inf")),
        Score(1.0, components=(ComponentReward("a", 1.0, float("-inf")),)),
        Score(1.0, components=(ComponentReward("a", 1.0, 1.0, spread=float("nan")),)),
        float("inf"),
        -3.5e38,
        "1.0",
        [1.0],
    ],
)
def test_what_is_no_finite_number_anywhere_is_an_error(outcome: Any):
    assert isinstance(checked_outcome(outcome), ScoreError)


def test_a_good_outcome_is_left_as_it_is():
    score = Score(1.0, 0.5, (ComponentReward("a", 2.0, 0.5),))
    assert checked_outcome(score) is score
    assert checked_outcome(3) == 3.0
    error = ScoreError(ErrorCode.TOO_LONG, "long")
    assert checked_outcome(error) is error
