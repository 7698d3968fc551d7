"""What the adapters share, against a service that does on demand what can go wrong."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator

import grpc
import pytest

from rlhf.client import Reward, RewardClient, RewardError, ScoreItem
from rlhf.client import patience as waiting
from rlhf.client.adapters import scoring as gathering
from rlhf.client.adapters.scoring import Gatherer, ItemScorer, close_gatherers, gatherer_for
from rlhf.client.patience import Patience
from rlhf.errors import InvalidRequestError, NotReadyError
from tests.support.fake_text_reward import FakeTextReward

LOCAL_ERROR = RewardError("", "invalid_item", "only text is scored")


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(waiting, "POLL_SECONDS", 0.01)


@pytest.fixture
async def service() -> AsyncIterator[FakeTextReward]:
    async with FakeTextReward(max_items=2) as fake:
        yield fake


def text(completion: str) -> ScoreItem:
    return ScoreItem.text("a prompt", completion)


async def test_outcomes_keep_their_places_beside_items_that_were_never_sent(service: FakeTextReward):
    async with RewardClient(service.target) as client:
        outcomes = await ItemScorer(client, Patience()).score([text("a"), LOCAL_ERROR, text("bbb"), text("cc")])
    assert outcomes == [Reward("", 1.0), LOCAL_ERROR, Reward("", 3.0), Reward("", 2.0)]
    assert sorted(service.sizes) == [1, 2]


async def test_what_may_pass_is_sent_again_under_another_id(service: FakeTextReward):
    service.item_errors = {"judged": deque(["UNAVAILABLE", "TIMEOUT"]), "bad": deque(["TOO_LONG"])}
    async with RewardClient(service.target) as client:
        outcomes = await ItemScorer(client, Patience(item_tries=3)).score([text("judged"), text("bad")])
    assert outcomes == [Reward("", 6.0), RewardError("", "too_long", "refused by the fake")]
    assert service.sizes == [2, 1, 1]
    assert len({request.request_id for request in service.requests}) == 3


async def test_what_does_not_pass_stays_an_error(service: FakeTextReward):
    service.item_errors = {"judged": deque(["UNAVAILABLE"] * 3)}
    async with RewardClient(service.target) as client:
        (outcome,) = await ItemScorer(client, Patience(item_tries=2)).score([text("judged")])
    assert outcome == RewardError("", "unavailable", "refused by the fake")


async def test_a_restart_of_the_service_is_waited_out_with_one_id(service: FakeTextReward):
    service.refusals.extend([(grpc.StatusCode.UNAVAILABLE, "")] * 5)  # one more than the channel tries by itself
    async with RewardClient(service.target) as client:
        (outcome,) = await ItemScorer(client, Patience()).score([text("abc")])
    assert outcome == Reward("", 3.0)
    assert len(service.requests) == 6
    assert len({request.request_id for request in service.requests}) == 1


async def test_a_service_that_stays_away_is_an_error_with_the_remedy():
    async with RewardClient("127.0.0.1:1") as client:
        with pytest.raises(NotReadyError, match="did not come back in time: start it, or give the caller more"):
            await ItemScorer(client, Patience(deadline_seconds=0.2, wait_seconds=0.2)).score([text("a")])


async def test_concurrent_calls_are_gathered_and_each_gets_its_own_outcome(service: FakeTextReward):
    service.max_items = 1000
    gatherer = Gatherer(service.target, "me", 0.05, Patience())
    items: list[ScoreItem | RewardError] = [text("x" * length) for length in (1, 2, 3)]
    outcomes = await asyncio.gather(*(gatherer.score(item) for item in [*items, LOCAL_ERROR]))
    assert outcomes == [Reward("", 1.0), Reward("", 2.0), Reward("", 3.0), LOCAL_ERROR]
    assert service.sizes == [3]
    assert service.callers == ["me"]
    assert await gatherer.score(text("later")) == Reward("", 5.0)
    await gatherer.close()


async def test_a_caller_that_has_gone_is_not_scored(service: FakeTextReward):
    gatherer = Gatherer(service.target, "", 0.05, Patience())
    gone, waits = asyncio.create_task(gatherer.score(text("gone"))), asyncio.create_task(gatherer.score(text("waits")))
    await asyncio.sleep(0)
    gone.cancel()
    assert await waits == Reward("", 5.0)
    assert service.sizes == [1]
    await gatherer.close()


async def test_a_failure_of_the_service_reaches_every_caller(service: FakeTextReward):
    service.refusals.append((grpc.StatusCode.INVALID_ARGUMENT, ""))
    gatherer = Gatherer(service.target, "", 0.05, Patience())
    outcomes = await asyncio.gather(gatherer.score(text("a")), gatherer.score(text("b")), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [InvalidRequestError, InvalidRequestError]
    await gatherer.close()


async def test_a_loop_has_one_gatherer_for_a_service(service: FakeTextReward):
    gatherer = gatherer_for(service.target, "me", Patience())
    assert gatherer_for(service.target, "me", Patience()) is gatherer
    assert gatherer_for(service.target, "other", Patience()) is not gatherer
    await close_gatherers()
    assert gatherer_for(service.target, "me", Patience()) is not gatherer
    await close_gatherers()


def test_loops_that_have_ended_are_forgotten(service_elsewhere: FakeTextReward):
    async def score() -> Reward | RewardError:
        return await gatherer_for(service_elsewhere.target, "", Patience()).score(text("abc"))

    assert [asyncio.run(score()) for _ in range(3)] == [Reward("", 3.0)] * 3
    assert len([loop for loop in gathering._gatherers if loop.is_closed()]) == 1
