import asyncio
from collections.abc import Awaitable, Callable

import pytest

from rlhf.client.hedging import hedged
from rlhf.errors import InvalidRequestError, NotReadyError


def answering(value: str, after: asyncio.Event | None = None) -> Callable[[], Awaitable[str]]:
    async def call() -> str:
        if after is not None:
            await after.wait()
        return value

    return call


def failing(error: Exception, after: asyncio.Event | None = None) -> Callable[[], Awaitable[str]]:
    async def call() -> str:
        if after is not None:
            await after.wait()
        raise error

    return call


async def test_a_failure_before_the_hedge_is_the_calls_failure():
    with pytest.raises(NotReadyError, match="away"):
        await hedged(failing(NotReadyError("away")), answering("second"), after_seconds=20)


async def test_the_first_answer_wins_and_the_other_call_is_cancelled():
    assert await hedged(answering("first", asyncio.Event()), answering("second"), after_seconds=0.01) == "second"


async def test_the_second_may_fail_while_the_first_still_answers():
    first_may_answer = asyncio.Event()

    async def second() -> str:
        first_may_answer.set()
        raise NotReadyError("the other replica is away")

    assert await hedged(answering("first", first_may_answer), second, after_seconds=0.01) == "first"


async def test_a_refusal_of_the_request_is_true_of_both():
    with pytest.raises(InvalidRequestError, match="items is empty"):
        await hedged(
            answering("first", asyncio.Event()), failing(InvalidRequestError("items is empty")), after_seconds=0.01
        )


async def test_if_both_fail_the_first_failure_is_told():
    gone = asyncio.Event()

    async def second() -> str:
        gone.set()
        raise NotReadyError("second")

    with pytest.raises(NotReadyError, match="first"):
        await hedged(failing(NotReadyError("first"), gone), second, after_seconds=0.01)
