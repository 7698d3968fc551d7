"""The reward function for verl, called as its reward managers call one: by name, for one completion each."""

import asyncio
import inspect
from collections import deque
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

from rlhf.client.adapters.scoring import NoRewardError, close_gatherers
from rlhf.client.adapters.verl import compute_score, compute_score_sync, make_compute_score
from rlhf.errors import InvalidRequestError, NotReadyError
from tests.support.fake_text_reward import FakeTextReward


@pytest.fixture
async def service() -> AsyncIterator[FakeTextReward]:
    async with FakeTextReward() as fake:
        yield fake
        await close_gatherers()


def row(completion: str, **extra_info: object) -> dict[str, object]:
    """What verl's managers pass for one completion."""
    return {
        "data_source": "hh",
        "solution_str": completion,
        "ground_truth": "",
        "extra_info": {"question": "a prompt", "index": 7, **extra_info},
    }


async def test_concurrent_calls_go_to_the_service_together(service: FakeTextReward):
    assert inspect.iscoroutinefunction(compute_score)  # verl awaits those, and runs others in threads
    scores = await asyncio.gather(
        *(compute_score(**row("x" * length), target=service.target) for length in range(1, 65))
    )
    assert scores == [{"score": float(length)} for length in range(1, 65)]
    assert service.sizes == [64]
    assert service.callers == ["verl"]


async def test_what_verl_adds_is_ignored(service: FakeTextReward):
    extras = {"strict_box_verify": False, "reward_router_address": "x:1", "reward_model_tokenizer": None}
    assert await compute_score(**row("abc"), **extras, target=service.target) == {"score": 3.0}


async def test_the_parts_of_a_sum_are_extras(service: FakeTextReward):
    service.components = True
    assert await compute_score(**row("abc"), target=service.target) == {"score": 3.0, "component_length": 3.0}


async def test_the_prompt_may_be_messages_under_a_key_of_ones_own(service: FakeTextReward):
    messages = np.array([{"role": "user", "content": "Hi"}])  # as Parquet gives them
    score = make_compute_score(service.target, prompt_key="chat")
    assert inspect.iscoroutinefunction(score)
    assert await score(**row("abc", chat=messages)) == {"score": 3.0}
    assert [message.content for message in service.requests[0].items[0].conversation.messages] == ["Hi", "abc"]


async def test_a_row_without_a_prompt_is_refused_with_the_remedy(service: FakeTextReward):
    with pytest.raises(InvalidRequestError, match=r"the keys \['index'\], none of them question or prompt or raw_prom"):
        await compute_score("hh", "abc", "", {"index": 7}, target=service.target)
    with pytest.raises(InvalidRequestError, match=r"none of them chat: .* reward_kwargs\.prompt_key"):
        await compute_score(**row("abc"), target=service.target, prompt_key="chat")


async def test_a_completion_without_a_reward_raises_and_its_neighbours_are_scored(service: FakeTextReward):
    service.item_errors["bad"] = deque(["TOO_LONG"])
    bad, good = await asyncio.gather(
        compute_score(**row("bad"), target=service.target),
        compute_score(**row("good"), target=service.target),
        return_exceptions=True,
    )
    assert isinstance(bad, NoRewardError)
    assert str(bad) == "the completion has no reward: too_long: refused by the fake"
    assert good == {"score": 4.0}


def test_several_threads_may_call_at_once_and_hear_of_failures(service_elsewhere: FakeTextReward):
    score = partial(compute_score_sync, target=service_elsewhere.target)
    with ThreadPoolExecutor(8) as pool:
        scores = list(pool.map(lambda length: score(**row("x" * length)), range(1, 9)))
    assert scores == [{"score": float(length)} for length in range(1, 9)]
    with pytest.raises(NotReadyError):
        compute_score_sync(**row("a"), target="127.0.0.1:1", deadline_seconds=0.1, wait_seconds=0.1)
