"""The sender's side of an UpdateWeights call, told the truth when the receiver ends it before it has everything."""

import asyncio
from collections.abc import AsyncIterable, Coroutine, Iterable
from typing import Any, TypeVar

import grpc

from rlhf.v1 import policy_pb2

T = TypeVar("T")

FAULT_DETAILS = "Internal error from Core"
LATE_SECONDS = 1.0
"""How long after that fault the receiver's own word is waited for; it is on this machine already, or nearly."""


async def send_push(
    call: Any, messages: AsyncIterable[bytes] | Iterable[bytes]
) -> policy_pb2.UpdateWeightsResponse | None:
    """Sends the messages of a push, and returns the answer.

    A receiver may end the call early: it refuses the push, or serves these weights already. If a message is being
    written at that moment, grpc.aio reports INTERNAL in place of what the receiver said (grpc/grpc issue 36066), so
    that is noted as it arrives.

    Args: a StreamUnaryCall that was begun without messages; the messages, serialised.
    Returns: None if the receiver took the push early, but the content of its answer was lost to that fault.
    Raises: AioRpcError as the receiver ended the call.
    """
    end: asyncio.Future[grpc.aio.AioRpcError] = asyncio.get_running_loop().create_future()

    def note(ended: Any) -> None:
        # Called with the fault and, before or after it, with what the receiver said.
        error = _end_of(ended)
        if not _is_fault(error) and not end.done():
            end.set_result(error)

    call.add_done_callback(note)
    try:
        if isinstance(messages, AsyncIterable):
            async for message in messages:
                await call.write(message)
        else:
            for message in messages:
                await call.write(message)
        await call.done_writing()
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        pass  # the call has ended, and its end says why
    try:
        answer: policy_pb2.UpdateWeightsResponse = await call
    except grpc.aio.AioRpcError as error:
        if not _is_fault(error):
            raise
        await asyncio.wait({end}, timeout=LATE_SECONDS)
        if not end.done():
            raise
        if end.result().code() is grpc.StatusCode.OK:
            return None
        raise end.result() from error
    return answer


def _is_fault(error: grpc.aio.AioRpcError) -> bool:
    return error.code() is grpc.StatusCode.INTERNAL and error.details() == FAULT_DETAILS


def _end_of(call: Any) -> grpc.aio.AioRpcError:
    """Returns how a call ended, in the moment in which it did."""
    trailing = _at_once(call.trailing_metadata()) or grpc.aio.Metadata()
    return grpc.aio.AioRpcError(
        _at_once(call.code()), grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), _at_once(call.details())
    )


def _at_once(asking: Coroutine[Any, Any, T]) -> T:
    """Returns what a coroutine returns that has nothing to wait for: of a call that has ended all is known."""
    try:
        asking.send(None)
    except StopIteration as answer:
        known: T = answer.value
        return known
    finally:
        asking.close()
    raise AssertionError("a call that has ended keeps its end to itself")
