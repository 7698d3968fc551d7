import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from rlhf.client.push_messages import chunk_message, send_push
from rlhf.v1 import policy_pb2, policy_pb2_grpc

MESSAGES = [chunk_message(number << 20, [bytes(1 << 20)]) for number in range(8)]
PUSHES = 20
"""Enough for a message to be under way when the call ends, in some of them."""


class Receiver(policy_pb2_grpc.PolicyServiceServicer):
    """Reads one message, or all, and then answers version 3 or what it is told to abort with."""

    def __init__(self, status: grpc.StatusCode | None = None, *, reads_all: bool = False) -> None:
        self._status = status
        self._reads_all = reads_all

    async def UpdateWeights(self, request_iterator: Any, context: Any) -> policy_pb2.UpdateWeightsResponse:
        requests = aiter(request_iterator)
        await anext(requests)
        if self._reads_all:
            async for _ in requests:
                pass
        if self._status is not None:
            context.set_trailing_metadata([("retry-after-ms", "250")])
            await context.abort(self._status, "it serves version 7")
        return policy_pb2.UpdateWeightsResponse(policy_version=3)


@asynccontextmanager
async def connected(receiver: Receiver) -> AsyncIterator[Any]:
    server = grpc.aio.server()
    policy_pb2_grpc.add_PolicyServiceServicer_to_server(receiver, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel.stream_unary(
            "/rlhf.v1.PolicyService/UpdateWeights",
            response_deserializer=policy_pb2.UpdateWeightsResponse.FromString,
        )
    await server.stop(None)


async def test_a_push_that_is_read_to_its_end_has_its_answer():
    async with connected(Receiver(reads_all=True)) as update:
        answer = await send_push(update(), MESSAGES)
        assert answer is not None
        assert answer.policy_version == 3


async def test_a_refusal_in_the_middle_of_a_push_arrives_as_it_was_said():
    async with connected(Receiver(grpc.StatusCode.FAILED_PRECONDITION)) as update:
        for _ in range(PUSHES):
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await send_push(update(), MESSAGES)
            assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert error.value.details() == "it serves version 7"
            assert ("retry-after-ms", "250") in tuple(error.value.trailing_metadata())


async def test_an_early_answer_is_never_taken_for_a_failure():
    async with connected(Receiver()) as update:
        for _ in range(PUSHES):
            answer = await send_push(update(), MESSAGES)
            assert answer is None or answer.policy_version == 3


async def test_messages_may_come_one_after_another():
    async def messages() -> AsyncIterator[bytes]:
        for message in MESSAGES:
            await asyncio.sleep(0)
            yield message

    async with connected(Receiver(reads_all=True)) as update:
        answer = await send_push(update(), messages())
        assert answer is not None


async def test_a_failure_that_is_the_receivers_own_is_not_waited_on():
    async with connected(Receiver(grpc.StatusCode.INTERNAL, reads_all=True)) as update:
        with pytest.raises(grpc.aio.AioRpcError, match="it serves version 7"):
            await send_push(update(), MESSAGES)
