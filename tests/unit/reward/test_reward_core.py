"""The core of the reward service, with scorers made for the test."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from rlhf_services.common.errors import InternalError, InvalidRequestError, NotReadyError, OverloadedError
from rlhf_services.reward.config import LimitsConfig
from rlhf_services.reward.core import RewardCore
from rlhf_services.reward.metrics import RewardMetrics
from rlhf_services.reward.scorer import ErrorCode, ScoreError, ScorerInfo, TextPair, TokenPair


class NumberScorer:
    """Takes completions that spell a number and answers it; "loud" raises, words are invalid."""

    info = ScorerInfo(name="number", version="number-1", tokenizer_digest="t1", max_sequence_tokens=0)

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.scored: list[str] = []

    def prepare(self, pair: TextPair | TokenPair) -> str | ScoreError:
        assert isinstance(pair, TextPair)
        if pair.completion == "word":
            return ScoreError(ErrorCode.INVALID_ITEM, "not a number")
        return pair.completion

    def size_of(self, prepared: str) -> int:
        return len(prepared)

    def score(self, batch: list[str]) -> list[float]:
        self.entered.set()
        assert self.gate.wait(10)
        self.scored += batch
        return [float(number) for number in batch if number != "lost"]


@asynccontextmanager
async def loaded(scorer: Any, **limits: Any) -> AsyncIterator[tuple[RewardCore, CollectorRegistry]]:
    registry = CollectorRegistry()
    core = RewardCore(lambda: scorer, LimitsConfig(**limits), RewardMetrics(registry))
    await core.load()
    try:
        yield core, registry
    finally:
        await core.close()


def text(completion: str) -> TextPair:
    return TextPair("prompt", completion)


async def test_every_item_gets_its_own_outcome_in_order():
    async with loaded(NumberScorer()) as (core, registry):
        outcomes = await core.score(
            [
                text("1.5"),
                text("word"),
                None,
                text("nan"),
                TextPair("", "1"),
                TextPair("p", ""),
                text("-inf"),
                text("-2"),
            ],
            "",
        )
    assert outcomes[0] == 1.5
    assert outcomes[7] == -2.0
    codes = [outcome.code for outcome in outcomes[1:7] if isinstance(outcome, ScoreError)]
    invalid, not_finite = ErrorCode.INVALID_ITEM, ErrorCode.NOT_FINITE
    assert codes == [invalid, invalid, not_finite, invalid, invalid, not_finite]
    messages = [outcome.message for outcome in outcomes[1:7] if isinstance(outcome, ScoreError)]
    assert messages[1] == "the item has neither text nor tokens; set one of them"
    assert "the scorer answered nan" in messages[2]
    assert "text.prompt is empty" in messages[3]
    assert "text.completion is empty" in messages[4]
    assert registry.get_sample_value("rlhf_reward_items_total") == 2
    assert registry.get_sample_value("rlhf_reward_errors_total", {"code": "invalid_item"}) == 4
    assert registry.get_sample_value("rlhf_reward_errors_total", {"code": "not_finite"}) == 2


async def test_a_batch_of_nothing_but_bad_items_is_answered():
    async with loaded(NumberScorer()) as (core, _):
        (outcome,) = await core.score([text("word")], "")
    assert outcome == ScoreError(ErrorCode.INVALID_ITEM, "not a number")


async def test_text_over_the_limit_is_too_long():
    async with loaded(NumberScorer(), max_text_characters=8) as (core, _):
        fault, reward = await core.score([TextPair("prompt", "123"), TextPair("prompt", "12")], "")
    assert isinstance(fault, ScoreError)
    assert fault.code is ErrorCode.TOO_LONG
    assert "9 characters, the limit is 8" in fault.message
    assert reward == 12.0


@pytest.mark.parametrize(
    ("num_items", "digest", "message"),
    [
        (0, "", "items is empty; send at least one"),
        (3, "", "items has 3 entries, the limit is 2"),
        (1, "t2", "tokenizer_digest is 't2', this service has 't1'"),
    ],
)
async def test_what_concerns_all_items_refuses_the_call(num_items: int, digest: str, message: str):
    async with loaded(NumberScorer(), max_items=2) as (core, _):
        with pytest.raises(InvalidRequestError, match=message):
            await core.score([text("1")] * num_items, digest)


async def test_the_right_digest_is_accepted():
    async with loaded(NumberScorer()) as (core, _):
        assert await core.score([text("1")], "t1") == [1.0]


async def test_a_full_queue_refuses_at_once():
    scorer = NumberScorer()
    async with loaded(scorer, max_items=2, max_queue_items=2) as (core, registry):
        scorer.gate.clear()
        first = asyncio.create_task(core.score([text("1")], ""))
        await asyncio.to_thread(scorer.entered.wait, 10)
        second = asyncio.create_task(core.score([text("2"), text("3")], ""))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="no room for"):
            await core.score([text("4")], "")
        assert registry.get_sample_value("rlhf_reward_queue_items") == 2
        scorer.gate.set()
        assert await first == [1.0]
        assert await second == [2.0, 3.0]


async def test_items_of_a_caller_that_left_are_not_scored():
    scorer = NumberScorer()
    async with loaded(scorer) as (core, _):
        scorer.gate.clear()
        first = asyncio.create_task(core.score([text("1")], ""))
        await asyncio.to_thread(scorer.entered.wait, 10)
        leaving = asyncio.create_task(core.score([text("2")], ""))
        await asyncio.sleep(0.05)
        leaving.cancel()
        scorer.gate.set()
        await first
        await core.score([text("3")], "")
    assert scorer.scored == ["1", "3"]


async def test_a_scorer_with_the_wrong_number_of_rewards_fails_the_call():
    async with loaded(NumberScorer()) as (core, _):
        with pytest.raises(InternalError, match="1 rewards for 2 items"):
            await core.score([text("1111"), text("lost")], "")


async def test_a_scorer_that_raises_fails_the_call_and_the_next_one_works():
    async with loaded(NumberScorer()) as (core, _):
        with pytest.raises(ValueError, match="loud"):
            await core.score([text("loud")], "")
        assert await core.score([text("1")], "") == [1.0]


async def test_a_stuck_scorer_turns_readiness_off_until_it_answers():
    scorer = NumberScorer()
    async with loaded(scorer, stuck_after_seconds=0.01) as (core, _):
        await core.check()
        scorer.gate.clear()
        call = asyncio.create_task(core.score([text("1")], ""))
        await asyncio.to_thread(scorer.entered.wait, 10)
        await asyncio.sleep(0.02)
        with pytest.raises(NotReadyError, match="busy with one batch"):
            await core.check()
        scorer.gate.set()
        await call
        await core.check()


async def test_metrics_tell_the_distribution_of_rewards_and_what_the_queue_holds():
    async with loaded(NumberScorer(), max_items=4, max_queue_items=7) as (core, registry):
        await core.score([text("-4.5"), text("0.3"), text("12"), text("nan")], "")
        await core.score([text("0.5")], "")
    # A bucket counts what is at most its bound: one is at most -4, three at most 0.5, 12 is over all; NaN is none.
    counts = [
        registry.get_sample_value("rlhf_reward_score_bucket", {"le": le}) for le in ("-4.0", "0.5", "10.0", "+Inf")
    ]
    assert counts == [1, 3, 3, 4]
    assert registry.get_sample_value("rlhf_reward_queue_limit_items") == 7


async def test_metrics_tell_batch_size_and_padding():
    async with loaded(NumberScorer()) as (core, registry):
        await core.score([text("1234"), text("12"), text("123")], "")
    # 3 * 4 = 12 padded tokens, 9 of them real: a quarter is padding.
    assert registry.get_sample_value("rlhf_reward_batch_items_sum") == 3
    assert registry.get_sample_value("rlhf_reward_padding_ratio_sum") == pytest.approx(0.25)
    assert registry.get_sample_value("rlhf_reward_tokens_total") == 9
    assert registry.get_sample_value("rlhf_reward_model_seconds_count") == 1
