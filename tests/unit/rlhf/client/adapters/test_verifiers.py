"""The rewards for verifiers; test_verifiers_adapter.py has the library itself."""

import asyncio
import inspect
from collections import deque
from collections.abc import AsyncIterator
from types import SimpleNamespace

import grpc
import pytest

from rlhf.client.adapters.scoring import NoRewardError, close_gatherers
from rlhf.client.adapters.verifiers import RubricAbort, make_rubric_group_reward, make_rubric_reward, make_trace_reward
from rlhf.errors import InvalidRequestError
from tests.support.fake_text_reward import FakeTextReward

PROMPT = [{"role": "user", "content": "Hi"}]


def said(content: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": content}]


@pytest.fixture
async def service() -> AsyncIterator[FakeTextReward]:
    async with FakeTextReward() as fake:
        fake.item_errors["long"] = deque(["TOO_LONG"])
        yield fake
        await close_gatherers()


async def test_a_rubrics_calls_for_several_completions_go_together(service: FakeTextReward):
    reward = make_rubric_reward(service.target, name="helpful")
    assert list(inspect.signature(reward).parameters) == ["prompt", "completion"]  # what a Rubric passes by name
    assert reward.__name__ == "helpful"
    rewards = await asyncio.gather(*(reward(prompt=PROMPT, completion=said("x" * length)) for length in (3, 1, 2)))
    assert rewards == [3.0, 1.0, 2.0]
    assert service.sizes == [3]


async def test_a_group_is_one_call(service: FakeTextReward):
    reward = make_rubric_group_reward(service.target)
    assert list(inspect.signature(reward).parameters) == ["prompts", "completions"]
    assert await reward(prompts=[PROMPT] * 2, completions=[said("ab"), said("a")]) == [2.0, 1.0]
    assert service.sizes == [2]


async def test_without_a_reward_a_rubric_is_stopped_by_what_it_cannot_turn_into_0(service: FakeTextReward):
    assert not issubclass(RubricAbort, Exception)
    with pytest.raises(RubricAbort, match="too_long: refused by the fake"):
        await make_rubric_reward(service.target)(PROMPT, said("long"))
    service.refusals.append((grpc.StatusCode.INVALID_ARGUMENT, ""))
    with pytest.raises(RubricAbort, match=r"reward service at .*: refused by the fake"):
        await make_rubric_group_reward(service.target)([PROMPT], [said("ok")])


async def test_a_trace_is_scored_by_its_final_conversation(service: FakeTextReward):
    messages = [SimpleNamespace(role="user", content="Hi"), SimpleNamespace(role="assistant", content="Hello")]
    reward = make_trace_reward(service.target)
    assert await reward(SimpleNamespace(messages=messages)) == 5.0
    messages[-1].content = "long"
    with pytest.raises(NoRewardError, match="too_long"):
        await reward(SimpleNamespace(messages=messages))
    service.refusals.append((grpc.StatusCode.INVALID_ARGUMENT, ""))
    with pytest.raises(InvalidRequestError):
        await reward(SimpleNamespace(messages=messages))
