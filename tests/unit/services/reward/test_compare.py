"""Comparing: the probability by hand, whose fault an error is, and a judge that is asked for the pair."""

import math
from typing import Any

import pytest

from rlhf.errors import InvalidRequestError
from services.reward.comparing import Comparison, ComparisonPair, compare_probability
from services.reward.scorers.scorer import ErrorCode, ScoreError
from tests.support.number_scorer import NumberScorer, loaded, text


class PairJudge(NumberScorer):
    """Asked for a pair, it believes first / (first + second); it never scores alone."""

    def __init__(self) -> None:
        super().__init__()
        self.compared: list[list[tuple[str, str]]] = []

    def score(self, batch: list[str]) -> list[Any]:
        raise AssertionError("a judge is asked for pairs")

    def compare(self, batch: list[tuple[str, str]]) -> list[Any]:
        self.compared.append(batch)
        return [float(first) / (float(first) + float(second)) for first, second in batch]


def pair(first: str, second: str, margin: float = 0.0) -> ComparisonPair:
    return ComparisonPair(text(first), text(second), margin)


async def compare(scorer: NumberScorer, *pairs: ComparisonPair) -> list[Any]:
    async with loaded(scorer) as (core, _):
        return list((await core.compare(list(pairs))).outcomes)


async def test_the_probability_is_the_sigmoid_of_the_logits_difference_less_the_margin():
    # Rewards 2 and 1.5, a standard deviation of 4: logits are 2 apart, and with a margin of 0.5 they are 1.5 apart.
    equal, ahead, behind = await compare(
        NumberScorer(logit_scale=4.0), pair("2", "1.5", 2.0), pair("2", "1.5", 0.5), pair("1.5", "2", 0.5)
    )
    assert equal == Comparison(0.5, 2.0, 1.5)
    assert ahead.probability == pytest.approx(1 / (1 + math.exp(-1.5)))
    assert behind.probability == pytest.approx(1 / (1 + math.exp(2.5)))
    assert (behind.first_reward, behind.second_reward) == (1.5, 2.0)


async def test_the_answer_names_its_version_and_far_logits_do_not_overflow():
    async with loaded(NumberScorer()) as (core, registry):
        answer = await core.compare([pair("1e30", "-1e30"), pair("-1e30", "1e30")])
    assert [outcome.probability for outcome in answer.outcomes] == [1.0, 0.0]
    assert answer.model_version == "number-1"
    assert registry.get_sample_value("rlhf_reward_items_total") == 4


async def test_an_error_says_which_of_the_two_is_at_fault_and_the_others_are_compared():
    outcomes = await compare(
        NumberScorer(),
        pair("word", "1"),
        pair("1", "raises"),
        ComparisonPair(text("1"), None),
        ComparisonPair(None, None),
        pair("1", "1", math.nan),
        pair("1", "1", -math.inf),
        pair("3", "3"),
    )
    assert outcomes[-1] == Comparison(0.5, 3.0, 3.0)
    messages = [outcome.message for outcome in outcomes[:-1]]
    assert messages[0] == "first: not a number"
    assert messages[1].startswith("second: the scorer raised ValueError")
    assert messages[2].startswith("second: the item has no input")
    assert messages[3].startswith("first: the item has no input")
    assert messages[4] == "margin is nan; send a finite number, or leave it out for 0"
    assert messages[5].startswith("margin is -inf")
    assert outcomes[1].code is ErrorCode.SCORER_FAILED
    assert outcomes[4].code is ErrorCode.INVALID_ITEM


async def test_a_judge_is_asked_for_the_pair_and_the_margin_moves_its_odds():
    judge = PairJudge()
    outcomes = await compare(judge, pair("3", "1"), pair("3", "1", math.log(3)), pair("word", "1"))
    # Odds of 3 to 1; a margin of log 3 makes them 1 to 1.
    assert outcomes[0] == Comparison(0.75)
    assert outcomes[1].probability == pytest.approx(0.5)
    assert outcomes[1].first_reward is None
    assert outcomes[2].message == "first: not a number"
    assert judge.compared == [[("3", "1"), ("3", "1")]]


async def test_a_judge_that_fails_on_one_pair_answers_the_others():
    fault, right = await compare(PairJudge(), pair("0", "0"), pair("1", "3"))
    assert fault.code is ErrorCode.SCORER_FAILED
    assert "ZeroDivisionError" in fault.message
    assert right == Comparison(0.25)


def test_a_judges_probability_is_checked_and_certainty_stays():
    assert compare_probability(1.0, 100.0) == Comparison(1.0)
    assert compare_probability(0.0, -100.0) == Comparison(0.0)
    assert compare_probability(0.5, 1e300) == Comparison(0.0)
    fault = compare_probability(1.5, 0.0)
    assert isinstance(fault, ScoreError)
    assert "1.5, which is no probability" in fault.message


@pytest.mark.parametrize(("num_pairs", "message"), [(0, "items is empty"), (3, "items has 3 entries, the limit is 2")])
async def test_a_call_has_at_most_half_as_many_pairs_as_items(num_pairs: int, message: str):
    async with loaded(NumberScorer(), max_items=4) as (core, _):
        with pytest.raises(InvalidRequestError, match=message):
            await core.compare([pair("1", "2")] * num_pairs)
