"""The core of the reward service, with scorers made for the test."""

import asyncio
from typing import Any

import pytest

from rlhf.errors import InvalidRequestError, NotReadyError, OverloadedError
from services.reward.scorers.scorer import (
    ChatMessage,
    Conversation,
    ErrorCode,
    Item,
    Observation,
    RawPair,
    ScoreError,
    TextPair,
)
from tests.support.number_scorer import NumberScorer, loaded, text, until


async def test_every_item_gets_its_own_outcome_in_order():
    async with loaded(NumberScorer()) as (core, registry):
        answer = await core.score(
            [
                text("1.5"),
                text("word"),
                None,
                text("nan"),
                TextPair("", "1"),
                TextPair("p", ""),
                text("-inf"),
                text("-2"),
            ]
        )
    outcomes = answer.outcomes
    assert answer.model_version == "number-1"
    assert outcomes[0] == 1.5
    assert outcomes[7] == -2.0
    codes = [outcome.code for outcome in outcomes[1:7]]
    invalid, not_finite = ErrorCode.INVALID_ITEM, ErrorCode.NOT_FINITE
    assert codes == [invalid, invalid, not_finite, invalid, invalid, not_finite]
    messages = [outcome.message for outcome in outcomes[1:7]]
    assert messages[1] == "the item has no input; set one of text, tokens, conversation, raw and sequence"
    assert "the scorer answered nan" in messages[2]
    assert "text.prompt is empty" in messages[3]
    assert "text.completion is empty" in messages[4]
    assert registry.get_sample_value("rlhf_reward_items_total") == 2
    assert registry.get_sample_value("rlhf_reward_errors_total", {"code": "invalid_item"}) == 4
    assert registry.get_sample_value("rlhf_reward_errors_total", {"code": "not_finite"}) == 2


async def test_a_batch_of_nothing_but_bad_items_is_answered():
    async with loaded(NumberScorer()) as (core, _):
        answer = await core.score([text("word")])
    assert answer.outcomes == [ScoreError(ErrorCode.INVALID_ITEM, "not a number")]


async def test_text_over_the_limit_is_too_long():
    async with loaded(NumberScorer(), max_text_characters=8) as (core, _):
        fault, reward = (await core.score([TextPair("prompt", "123"), TextPair("prompt", "12")])).outcomes
    assert fault.code is ErrorCode.TOO_LONG
    assert "9 characters, the limit is 8" in fault.message
    assert reward == 12.0


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (RawPair("p", ""), "raw.completion is empty"),
        (Conversation(()), "conversation.messages has 0 entries"),
        (Conversation((ChatMessage("assistant", "a"),)), "conversation.messages has 1 entries"),
        (Conversation((ChatMessage("user", "q"), ChatMessage("user", "a"))), "the last of conversation.messages is"),
        (Conversation((ChatMessage("", "q"), ChatMessage("assistant", "a"))), "messages[0].role is empty"),
        (Conversation((ChatMessage("user", "q"), ChatMessage("assistant", ""))), "messages[1].content is empty"),
        (TextPair("p", "a\ud83d"), "text.completion has U+D83D at character 1, half of a surrogate pair"),
    ],
)
async def test_a_malformed_item_names_the_field_and_the_remedy(item: Item, message: str):
    async with loaded(NumberScorer()) as (core, _):
        fault, reward = (await core.score([item, text("3")])).outcomes
    assert fault.code is ErrorCode.INVALID_ITEM
    assert message in fault.message
    assert reward == 3.0


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
            await core.score([text("1")] * num_items, tokenizer_digest=digest)


async def test_the_right_digest_is_accepted():
    async with loaded(NumberScorer()) as (core, _):
        assert (await core.score([text("1")], tokenizer_digest="t1")).outcomes == [1.0]


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_back():
    scorer = NumberScorer()
    async with loaded(scorer, max_items=2, max_queue_items=2) as (core, registry):
        scorer.gate.clear()
        first = asyncio.create_task(core.score([text("1")]))
        await scorer.wait_until_running()
        second = asyncio.create_task(core.score([text("2"), text("3")]))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="no room for") as refusal:
            await core.score([text("4")])
        assert refusal.value.retry_after_seconds is not None
        assert refusal.value.retry_after_seconds > 0
        assert registry.get_sample_value("rlhf_reward_queue_items") == 2
        scorer.gate.set()
        assert (await first).outcomes == [1.0]
        assert (await second).outcomes == [2.0, 3.0]


async def test_items_of_a_caller_that_left_are_not_scored():
    scorer = NumberScorer()
    async with loaded(scorer) as (core, registry):
        scorer.gate.clear()
        first = asyncio.create_task(core.score([text("1")]))
        await scorer.wait_until_running()
        leaving = asyncio.create_task(core.score([text("2")]))
        await until(lambda: registry.get_sample_value("rlhf_reward_queue_items") == 1)
        leaving.cancel()
        await asyncio.wait([leaving])
        assert registry.get_sample_value("rlhf_reward_queue_items") == 0
        scorer.gate.set()
        await first
        await core.score([text("3")])
    assert scorer.scored == ["1", "3"]


async def test_a_small_call_is_prepared_between_the_parts_of_a_large_one():
    scorer = NumberScorer()
    async with loaded(scorer) as (core, registry):
        scorer.prepare_gate.clear()
        large = asyncio.create_task(core.score([text("1")] * 100))
        await asyncio.to_thread(scorer.preparing.wait, 10)
        small = asyncio.create_task(core.score([text("2")]))
        await until(lambda: registry.get_sample_value("rlhf_reward_queue_items") == 101)
        scorer.prepare_gate.set()
        await asyncio.gather(large, small)
    # The part of 32 that was being prepared, the small call, and the other 68.
    assert scorer.prepared.index("2") == 32


async def test_a_caller_that_leaves_while_its_items_are_prepared_ends_that_after_the_present_part():
    scorer = NumberScorer()
    async with loaded(scorer) as (core, registry):
        scorer.prepare_gate.clear()
        leaving = asyncio.create_task(core.score([text("1")] * 100))
        await asyncio.to_thread(scorer.preparing.wait, 10)
        leaving.cancel()
        await asyncio.wait([leaving])
        assert registry.get_sample_value("rlhf_reward_queue_items") == 0
        scorer.prepare_gate.set()
        await core.score([text("2")])
    assert scorer.prepared == ["1"] * 32 + ["2"]
    assert scorer.scored == ["2"]


async def test_a_stuck_scorer_turns_readiness_off_until_it_answers():
    scorer = NumberScorer()
    async with loaded(scorer, stuck_after_seconds=0.01) as (core, _):
        await core.check()
        scorer.gate.clear()
        call = asyncio.create_task(core.score([text("1")]))
        await scorer.wait_until_running()
        await asyncio.sleep(0.02)
        with pytest.raises(NotReadyError, match="busy with one batch"):
            await core.check()
        scorer.gate.set()
        await call
        await core.check()


async def test_closing_answers_those_that_wait_and_frees_the_scorer():
    scorer = NumberScorer()
    async with loaded(scorer) as (core, _):
        scorer.gate.clear()
        call = asyncio.create_task(core.score([text("1")]))
        await scorer.wait_until_running()
        await core.close()
        with pytest.raises(NotReadyError, match="shutting down"):
            await call
        scorer.gate.set()
    assert scorer.closed.is_set()


class RecordingWatch:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, Any, str]] = []

    def observe(self, model_version: str, caller: str, observations: Any, tokenizer_digest: str = "") -> None:
        self.seen.append((model_version, caller, observations, tokenizer_digest))

    def reports(self) -> list[Any]:
        return []

    def close(self) -> None:
        pass


async def test_the_watch_is_told_of_the_rewards_and_of_no_error():
    watch = RecordingWatch()
    async with loaded(NumberScorer(), watch) as (core, _):
        await core.score([text("1"), text("word"), None, text("2")], caller="trainer")
        assert core.report() == []
    observations = [Observation(1.0, None, "1", text("1")), Observation(2.0, None, "2", text("2"))]
    assert watch.seen == [("number-1", "trainer", observations, "t1")]


async def test_metrics_tell_the_distribution_of_rewards_and_what_the_queue_holds():
    async with loaded(NumberScorer(), max_items=4, max_queue_items=7) as (core, registry):
        await core.score([text("-4.5"), text("0.3"), text("12"), text("nan")])
        await core.score([text("0.5")])
    # A bucket counts what is at most its bound: one is at most -4, three at most 0.5, 12 is over all; NaN is none.
    counts = [
        registry.get_sample_value("rlhf_reward_score_bucket", {"model_version": "number-1", "le": le})
        for le in ("-4.0", "0.5", "10.0", "+Inf")
    ]
    assert counts == [1, 3, 3, 4]
    assert registry.get_sample_value("rlhf_reward_queue_limit_items") == 7


async def test_metrics_tell_batch_size_and_padding_and_where_the_time_goes():
    async with loaded(NumberScorer(pads=True)) as (core, registry):
        await core.score([text("1234"), text("12"), text("123")])
    # 3 * 4 = 12 padded tokens, 9 of them real: a quarter is padding.
    assert registry.get_sample_value("rlhf_reward_batch_items_sum") == 3
    assert registry.get_sample_value("rlhf_reward_padding_ratio_sum") == pytest.approx(0.25)
    assert registry.get_sample_value("rlhf_reward_tokens_total") == 9
    assert registry.get_sample_value("rlhf_reward_model_seconds_count") == 1
    counts = [
        registry.get_sample_value("rlhf_reward_phase_seconds_count", {"phase": phase})
        for phase in ("tokenise", "queue", "model")
    ]
    assert counts == [1, 3, 1]  # one call, three items, one batch


async def test_a_scorer_that_pads_nothing_wastes_nothing():
    async with loaded(NumberScorer()) as (core, registry):
        await core.score([text("1234"), text("12")])
    assert registry.get_sample_value("rlhf_reward_padding_ratio_sum") == 0
