"""Bad input, large input and bad manners over gRPC: the service answers each item by itself, and stays ready."""

import asyncio
import math
import resource
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from rlhf.v1 import reward_pb2
from services.reward.scorers.config import ScorerConfig, build_scorer, scorer_config
from tests.support.number_scorer import NumberScorer, until
from tests.support.reward_over_grpc import OWN_CONNECTION, connected, serving_scorer, text_item, token_item
from tests.support.tiny_model import MAX_SEQUENCE_TOKENS, VOCAB_SIZE

ScoreItem = reward_pb2.ScoreItem
Messages = list[tuple[str, str]]

GOOD = token_item([2, 5], [6, 7])


@pytest.fixture(scope="module")
def model_config(tiny_reward_path: Path) -> ScorerConfig:
    return scorer_config(kind="model", path=str(tiny_reward_path), dtype="float32", device="cpu")


@pytest.fixture
async def target(model_config: ScorerConfig) -> AsyncIterator[str]:
    """A service around the tiny model that takes texts of up to 100,000 characters; ready before and after the test."""
    scorer = await asyncio.to_thread(build_scorer, model_config)
    async with serving_scorer(scorer, max_text_characters=100_000) as (target, _):
        yield target
        assert await is_serving(target)


async def is_serving(target: str) -> bool:
    async with grpc.aio.insecure_channel(target, options=OWN_CONNECTION) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=5)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


async def score(target: str, *items: ScoreItem, **fields: Any) -> list[reward_pb2.ScoreResult]:
    async with connected(target) as stub:
        answer = await stub.Score(reward_pb2.ScoreRequest(items=items, **fields), timeout=60)
        return list(answer.results)


def conversation(*messages: tuple[str, str]) -> ScoreItem:
    return ScoreItem(
        conversation=reward_pb2.Conversation(
            messages=[reward_pb2.ChatMessage(role=role, content=content) for role, content in messages]
        )
    )


def sequence(*ids: int) -> ScoreItem:
    return ScoreItem(sequence=reward_pb2.TokenSequence(ids=ids))


def raw(prompt: str, completion: str) -> ScoreItem:
    return ScoreItem(raw=reward_pb2.RawText(prompt=prompt, completion=completion))


INVALID, TOO_LONG = reward_pb2.SCORE_ERROR_CODE_INVALID_ITEM, reward_pb2.SCORE_ERROR_CODE_TOO_LONG
BAD_ITEMS: list[tuple[ScoreItem, "reward_pb2.ScoreErrorCode", str]] = [
    (ScoreItem(), INVALID, "the item has no input"),
    (text_item(""), INVALID, "text.completion is empty"),
    (text_item("x", prompt=""), INVALID, "text.prompt is empty"),
    (text_item("x" * 1_000_000), TOO_LONG, "1000006 characters, the limit is 100000"),
    (text_item("x" * 99_000), TOO_LONG, "tokens"),
    (text_item("x", prompt="p" * 600), TOO_LONG, "tokens"),
    (raw("p", ""), INVALID, "raw.completion is empty"),
    (raw("p", "y" * 1_000_000), TOO_LONG, "1000001 characters"),
    (token_item([], []), INVALID, "tokens.prompt_ids is empty"),
    (token_item([1], [VOCAB_SIZE]), INVALID, f"tokens.completion_ids[0] is {VOCAB_SIZE}, outside the vocabulary"),
    (token_item([-1], [1]), INVALID, "tokens.prompt_ids[0] is -1"),
    (token_item([2**31 - 1], [1]), INVALID, "tokens.prompt_ids[0] is 2147483647"),
    (token_item([5] * MAX_SEQUENCE_TOKENS, [6]), TOO_LONG, "513 tokens"),
    (token_item([5] * 1_000_000, [6]), TOO_LONG, "1000001 tokens"),
    (sequence(), INVALID, "sequence.ids"),
    (sequence(5, -7), INVALID, "sequence.ids[1] is -7"),
    (sequence(*[5] * 513), TOO_LONG, "513 tokens"),
    (conversation(), INVALID, "conversation.messages has 0 entries"),
    (conversation(("user", "hi")), INVALID, "conversation.messages has 1 entries"),
    (conversation(("assistant", "hi"), ("user", "hi")), INVALID, "the last of conversation.messages"),
    (conversation(("user", "hi"), ("assistant", "")), INVALID, "messages[1].content is empty"),
    (conversation(("user", "z" * 1_000_000), ("assistant", "a")), TOO_LONG, "the limit is 100000"),
]


async def test_every_bad_item_has_its_own_error_and_the_good_ones_between_them_their_rewards(target: str):
    (alone,) = await score(target, GOOD)
    items = [each for bad, _, _ in BAD_ITEMS for each in (bad, GOOD)]
    results = await score(target, *items)
    assert [result.reward for result in results[1::2]] == pytest.approx([alone.reward] * len(BAD_ITEMS), abs=1e-5)
    for result, (_, code, message) in zip(results[::2], BAD_ITEMS, strict=True):
        assert result.WhichOneof("outcome") == "error", message
        assert (result.error.code, message in result.error.message) == (code, True), (message, result.error.message)


async def test_all_forms_of_one_pair_get_one_reward(target: str):
    text = ScoreItem(text=reward_pb2.TextPair(prompt="How are you?", completion="Fine."))
    # The tiny model's chat template and its bytes, by hand.
    in_context = raw("<|user|>How are you?<|end|><|assistant|>", "Fine.<|end|>")
    results = await score(target, text, conversation(("user", "How are you?"), ("assistant", "Fine.")), in_context)
    assert [result.WhichOneof("outcome") for result in results] == ["reward"] * 3
    assert [result.reward for result in results] == pytest.approx([results[0].reward] * 3, abs=1e-5)
    pair, whole = await score(target, token_item([2, 5], [6, 7]), sequence(2, 5, 6, 7))
    assert pair.reward == pytest.approx(whole.reward, abs=1e-5)


@pytest.mark.parametrize(
    ("items", "fields", "message"),
    [
        ([], {}, "items is empty"),
        ([GOOD] * 10_000, {}, "items has 10000 entries, the limit is 1024; split the batch"),
        ([GOOD], {"tokenizer_digest": "x" * 10_000}, "tokenizer_digest is"),
        ([GOOD], {"tokenizer_digest": "\n" * 1_000_000}, "point the service at a model that shares yours"),
    ],
)
async def test_what_concerns_the_whole_call_is_invalid(
    target: str, items: list[ScoreItem], fields: dict[str, str], message: str
):
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await score(target, *items, **fields)
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert message in (refusal.value.details() or "")


async def test_ten_thousand_items_are_scored_where_the_limits_allow_them():
    async with serving_scorer(NumberScorer(), max_items=10_000, max_queue_items=20_000) as (target, registry):
        results = await score(target, *(text_item(str(number)) for number in range(10_000)))
        assert [result.reward for result in results] == list(range(10_000))
        assert registry.get_sample_value("rlhf_reward_queue_items") == 0


async def test_a_comparison_with_a_margin_that_is_no_number_is_that_items_error(target: str):
    other = token_item([2, 9], [6])
    items = [
        reward_pb2.ComparisonItem(item_id=str(index), first=GOOD, second=other, margin=margin)
        for index, margin in enumerate((math.nan, math.inf, -math.inf, 0.0, 1e308, -1e308))
    ]
    items.append(reward_pb2.ComparisonItem(item_id="6", first=GOOD))
    async with connected(target) as stub:
        results = list((await stub.Compare(reward_pb2.CompareRequest(items=items), timeout=60)).results)
    assert [result.item_id for result in results] == [str(index) for index in range(7)]
    for result in results[:3]:
        assert (result.error.code, "margin is" in result.error.message) == (INVALID, True)
    assert 0 < results[3].comparison.probability < 1
    assert [result.comparison.probability for result in results[4:6]] == [0.0, 1.0]
    assert results[6].error.message.startswith("second: the item has no input")


async def test_a_request_that_is_no_protobuf_is_an_error_of_that_call(target: str):
    async with grpc.aio.insecure_channel(target, options=OWN_CONNECTION) as channel:
        call = channel.unary_unary("/rlhf.v1.RewardService/Score")
        for garbage in (b"\xff" * 100, b"\x12\xff\xff\xff\xff\x0f"):
            with pytest.raises(grpc.aio.AioRpcError):
                await call(garbage, timeout=10)
    (result,) = await score(target, GOOD)
    assert result.WhichOneof("outcome") == "reward"


async def test_the_health_probe_answers_while_a_long_text_is_prepared():
    scorer = NumberScorer()
    async with serving_scorer(scorer) as (target, _):
        scorer.prepare_gate.clear()
        call = asyncio.create_task(score(target, text_item("5")))
        await asyncio.to_thread(scorer.preparing.wait, 10)
        assert await is_serving(target)
        assert not call.done()
        scorer.prepare_gate.set()
        assert (await call)[0].reward == 5.0


async def ask(stub: Any, completion: str, **options: Any) -> float:
    answer = await stub.Score(reward_pb2.ScoreRequest(items=[text_item(completion)]), **options)
    return float(answer.results[0].reward)


async def test_a_client_that_disconnects_leaves_nothing_in_the_queue():
    scorer = NumberScorer()
    async with serving_scorer(scorer) as (target, registry), connected(target) as staying:
        scorer.gate.clear()
        first = asyncio.create_task(ask(staying, "1"))
        await scorer.wait_until_running()
        async with connected(target) as leaving:
            request = reward_pb2.ScoreRequest(items=[text_item("2")] * 50, request_id="repeated")
            calls = [asyncio.ensure_future(leaving.Score(request)) for _ in range(2)]
            await until(lambda: registry.get_sample_value("rlhf_reward_queue_items") == 50)
        # The connection is closed; nobody has cancelled a call.
        await until(lambda: registry.get_sample_value("rlhf_reward_queue_items") == 0)
        await asyncio.wait(calls)
        scorer.gate.set()
        assert await first == 1.0
        assert await ask(staying, "3") == 3.0
    assert scorer.scored == ["1", "3"]


async def test_work_past_its_deadline_is_not_begun():
    scorer = NumberScorer()
    async with serving_scorer(scorer) as (target, registry), connected(target) as stub:
        scorer.gate.clear()
        first = asyncio.create_task(ask(stub, "1"))
        await scorer.wait_until_running()
        with pytest.raises(grpc.aio.AioRpcError) as late:
            await ask(stub, "2", timeout=0.2)
        assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: registry.get_sample_value("rlhf_reward_queue_items") == 0)
        scorer.gate.set()
        assert await first == 1.0
    assert scorer.scored == ["1"]


async def test_whatever_a_scorer_does_wrong_is_the_culprits_error():
    culprits = {
        "raises": reward_pb2.SCORE_ERROR_CODE_SCORER_FAILED,
        "lost": reward_pb2.SCORE_ERROR_CODE_SCORER_FAILED,
        "nan": reward_pb2.SCORE_ERROR_CODE_NOT_FINITE,
        "1e300": reward_pb2.SCORE_ERROR_CODE_NOT_FINITE,
        "slow": reward_pb2.SCORE_ERROR_CODE_TIMEOUT,
    }
    async with serving_scorer(NumberScorer()) as (target, _):
        for culprit, code in culprits.items():
            results = await score(target, text_item("1"), text_item(culprit), text_item("2"))
            assert [result.WhichOneof("outcome") for result in results] == ["reward", "error", "reward"]
            assert [results[0].reward, results[1].error.code, results[2].reward] == [1.0, code, 2.0]
        assert await is_serving(target)


async def test_a_thousand_connections_are_all_answered():
    # Each has a socket here and one in the server, which is this process too.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 4096), hard), hard))
    async with AsyncExitStack() as stack:
        target, registry = await stack.enter_async_context(serving_scorer(NumberScorer()))
        stubs = [await stack.enter_async_context(connected(target)) for _ in range(1000)]
        calls = (ask(stub, str(index), timeout=60) for index, stub in enumerate(stubs))
        assert await asyncio.gather(*calls) == list(range(1000))
        assert await is_serving(target)
        assert registry.get_sample_value("rlhf_reward_items_total") == 1000
