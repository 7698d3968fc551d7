"""The reward function for TRL, called as its trainers call one; test_trl_adapter.py has the trainer itself."""

import asyncio
import inspect
import logging
from collections import deque

import pytest

from rlhf.client.adapters.scoring import close_gatherers
from rlhf.client.adapters.trl import GrpcReward, make_async_reward
from rlhf.client.patience import Patience
from rlhf.errors import NotReadyError
from tests.support.fake_text_reward import FakeTextReward

COLUMNS = {"completion_ids": [[1], [2], [3]], "trainer_state": object(), "answer": ["x", "y", "z"]}


def test_a_batch_is_one_call_and_its_rewards_keep_their_order(service_elsewhere: FakeTextReward):
    reward = GrpcReward(service_elsewhere.target)
    assert reward.__name__ == "grpc_reward"
    assert not inspect.iscoroutinefunction(reward)
    assert reward(prompts=["p", "p", "q"], completions=["ccc", "a", "bb"], **COLUMNS) == [3.0, 1.0, 2.0]
    assert service_elsewhere.sizes == [3]
    assert service_elsewhere.callers == ["trl"]
    reward.close()
    assert reward(prompts=["p"], completions=["again"]) == [5.0]
    reward.close()


def test_messages_are_sent_as_conversations(service_elsewhere: FakeTextReward):
    reward = GrpcReward(service_elsewhere.target, name="helpful")
    prompt = [{"role": "user", "content": "Hi"}]
    assert reward([prompt], [[{"role": "assistant", "content": "Hello"}]]) == [5.0]
    item = service_elsewhere.requests[0].items[0]
    assert [message.role for message in item.conversation.messages] == ["user", "assistant"]
    reward.close()


def test_a_completion_without_a_reward_is_none_with_a_warning(
    service_elsewhere: FakeTextReward, caplog: pytest.LogCaptureFixture
):
    service_elsewhere.item_errors["long"] = deque(["TOO_LONG"])
    reward, metrics = GrpcReward(service_elsewhere.target, name="helpful"), {}
    with caplog.at_level(logging.WARNING):
        assert reward(["p", "p"], ["long", "ok"], log_metric=metrics.__setitem__) == [None, 2.0]
    assert "helpful: 1 of 2 completions have no reward: too_long (1); the first: refused by the fake" in caplog.text
    assert metrics == {"helpful/unscored": 1.0}
    reward.close()


def test_the_parts_of_a_sum_are_logged(service_elsewhere: FakeTextReward):
    service_elsewhere.components = True
    reward, metrics = GrpcReward(service_elsewhere.target), {}
    reward(["p", "p"], ["a", "bbb"], log_metric=metrics.__setitem__)
    assert metrics == {"grpc_reward/unscored": 0.0, "grpc_reward/length": 2.0}
    reward.close()


def test_a_service_that_is_away_raises():
    reward = GrpcReward("127.0.0.1:1", patience=Patience(deadline_seconds=0.2, wait_seconds=0.1))
    with pytest.raises(NotReadyError, match="did not come back in time"):
        reward(["p"], ["c"])
    reward.close()


async def test_the_asynchronous_one_is_a_coroutine_function_with_the_same_answers():
    async with FakeTextReward() as service:
        service.item_errors["long"] = deque(["TOO_LONG"])
        reward = make_async_reward(service.target, name="helpful")
        assert inspect.iscoroutinefunction(reward)
        assert reward.__name__ == "helpful"
        answers = await asyncio.gather(
            reward(prompts=["p", "p"], completions=["long", "ok"]), reward(prompts=["p"], completions=["abc"])
        )
        assert answers == [[None, 2.0], [3.0]]
        await close_gatherers()
