"""The reward client against a service that does on demand what can go wrong."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator

import grpc
import pytest

from rlhf.client import Comparison, ComparisonItem, Reward, RewardClient, RewardError, ScoreItem
from rlhf.errors import InvalidRequestError, OverloadedError
from tests.support.fake_text_reward import FakeTextReward

UNAVAILABLE = (grpc.StatusCode.UNAVAILABLE, "")
OVERLOADED_FOR_A_MOMENT = (grpc.StatusCode.RESOURCE_EXHAUSTED, "10")


@pytest.fixture
async def service() -> AsyncIterator[FakeTextReward]:
    async with FakeTextReward() as fake:
        yield fake


def text(completion: str) -> ScoreItem:
    return ScoreItem.text("a prompt", completion, f"id of {completion}")


async def test_each_call_has_an_id_of_its_own_and_says_who_calls(service: FakeTextReward):
    async with RewardClient(service.target, caller="me") as client:
        await client.score([text("ab")])
        await client.score([text("ab")])
        await client.score([text("ab")], request_id="mine")
    first, second, third = (request.request_id for request in service.requests)
    assert len({first, second}) == 2
    assert min(len(first), len(second)) == 32
    assert third == "mine"
    assert service.callers == ["me", "me", "me"]


async def test_every_form_of_item_reaches_the_service_as_it_is(service: FakeTextReward):
    items = [
        ScoreItem.text("p", "c", "1"),
        ScoreItem.tokens([1, 2], [3], "2"),
        ScoreItem.conversation([{"role": "user", "content": "p"}, {"role": "assistant", "content": "c"}], "3"),
        ScoreItem.raw("<|user|>p", "c<|end|>", "4"),
        ScoreItem.sequence([1, 2, 3], "5"),
    ]
    async with RewardClient(service.target) as client:
        await client.score(items, tokenizer_digest="theirs")
    request = service.requests[0]
    assert [item.WhichOneof("input") for item in request.items] == ["text", "tokens", "conversation", "raw", "sequence"]
    assert [item.item_id for item in request.items] == ["1", "2", "3", "4", "5"]
    assert list(request.items[4].sequence.ids) == [1, 2, 3]
    assert request.items[3].raw.completion == "c<|end|>"
    assert request.tokenizer_digest == "theirs"


async def test_the_parts_of_a_sum_come_with_the_reward(service: FakeTextReward):
    service.components = True
    async with RewardClient(service.target) as client:
        (result,) = (await client.score([text("abc")])).results
    assert isinstance(result, Reward)
    (part,) = result.components
    assert (result.reward, part.name, part.weight, part.reward, part.spread) == (3.0, "length", 1.0, 3.0, 0.5)


@pytest.mark.parametrize(
    ("code", "retryable"),
    [
        ("INVALID_ITEM", False),
        ("TOO_LONG", False),
        ("NOT_FINITE", False),
        ("SCORER_FAILED", False),
        ("TIMEOUT", True),
        ("UNAVAILABLE", True),
    ],
)
async def test_an_items_error_says_whether_another_try_may_help(service: FakeTextReward, code: str, retryable: bool):
    service.item_errors["bad"] = deque([code])
    async with RewardClient(service.target) as client:
        good, bad = (await client.score([text("good"), text("bad")])).results
    assert good == Reward("id of good", 4.0)
    assert bad == RewardError("id of bad", code.lower(), "refused by the fake")
    assert isinstance(bad, RewardError)
    assert bad.is_retryable is retryable


async def test_an_absence_is_tried_again_with_the_same_id(service: FakeTextReward):
    service.refusals.extend([UNAVAILABLE, UNAVAILABLE])
    async with RewardClient(service.target) as client:
        batch = await client.score([text("abc")])
    assert batch.results == [Reward("id of abc", 3.0)]
    assert len(service.requests) == 3
    assert len({request.request_id for request in service.requests}) == 1


async def test_an_overloaded_service_is_asked_again_when_it_says(service: FakeTextReward):
    service.refusals.extend([OVERLOADED_FOR_A_MOMENT, OVERLOADED_FOR_A_MOMENT])
    async with RewardClient(service.target) as client:
        batch = await client.score([text("abc")])
    assert batch.results == [Reward("id of abc", 3.0)]
    assert len({request.request_id for request in service.requests}) == 1
    assert len(service.requests) == 3


@pytest.mark.parametrize(
    ("hint", "wait", "deadline_seconds"),
    [
        ("", True, 60.0),  # no hint: no waiting would help
        ("10", False, 60.0),  # not wanted
        ("60000", True, 1.0),  # after the deadline
    ],
)
async def test_otherwise_an_overload_is_an_error_at_once(
    service: FakeTextReward, hint: str, wait: bool, deadline_seconds: float
):
    service.refusals.append((grpc.StatusCode.RESOURCE_EXHAUSTED, hint))
    async with RewardClient(service.target, wait_when_overloaded=wait) as client:
        with pytest.raises(OverloadedError, match=f"reward service at {service.target}: refused by the fake"):
            await client.score([text("abc")], deadline_seconds=deadline_seconds)
    assert len(service.requests) == 1


async def test_many_items_go_in_several_calls_and_come_back_in_order(service: FakeTextReward):
    service.max_items = 3
    progress: list[tuple[int, int]] = []
    items = [text("x" * length) for length in range(1, 9)]
    async with RewardClient(service.target) as client:
        scores = await client.score_many(items, on_progress=lambda done, total: progress.append((done, total)))
    assert [result.reward for result in scores.results if isinstance(result, Reward)] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert sorted(service.sizes) == [2, 3, 3]
    assert progress == [(3, 8), (6, 8), (8, 8)]
    assert scores.model_versions == ("v1",)


async def test_no_items_are_no_call(service: FakeTextReward):
    async with RewardClient(service.target) as client:
        assert (await client.score_many([])).results == []
    assert service.requests == []


async def test_no_more_calls_are_in_flight_than_allowed(service: FakeTextReward):
    release = asyncio.Event()
    service.holds.extend([release] * 6)
    async with RewardClient(service.target) as client:
        scoring = asyncio.create_task(client.score_many([text("x")] * 6, batch_items=1, max_concurrent_calls=2))
        for _ in range(2):
            await service.arrivals.acquire()
        with pytest.raises(TimeoutError):  # no third one
            await asyncio.wait_for(service.arrivals.acquire(), 0.1)
        release.set()
        assert len((await scoring).results) == 6


async def test_a_batch_that_fails_fails_the_whole_and_cancels_the_rest(service: FakeTextReward):
    service.refusals.append((grpc.StatusCode.INVALID_ARGUMENT, ""))
    service.holds.append(asyncio.Event())
    async with RewardClient(service.target) as client:
        with pytest.raises(InvalidRequestError, match="refused by the fake"):
            await client.score_many([text("x"), text("y")], batch_items=1)
        await asyncio.wait_for(service.cancelled.wait(), 5)


async def test_comparisons_loads_and_reports_are_decoded(service: FakeTextReward):
    async with RewardClient(service.target) as client:
        batch = await client.compare(
            [
                ComparisonItem(text("a"), text("b"), margin=0.5, item_id="good"),
                ComparisonItem(text(""), text("b"), item_id="bad"),
            ]
        )
        assert batch.results == [Comparison("good", 0.75, 2.0, 1.0), RewardError("bad", "invalid_item", "first: empty")]
        loaded = await client.load_model(["v2"])
        assert (loaded.model_version, loaded.previous_model_version, loaded.load_seconds) == ("v2", "v1", 0.5)
        assert (await client.get_model()).model_version == "v2"
        (report,) = await client.get_report()
        assert (report.caller, report.reward_mean, report.drift, report.warnings) == ("me", 1.5, 0.25, ("odd",))
        assert report.heldout_gap is None
