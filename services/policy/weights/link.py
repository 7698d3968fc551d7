"""One link of a chain: a push from this replica to the next one, which may be dead, hung or of another mind."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from rlhf.client import codec
from rlhf.client.channel import open_channel
from rlhf.client.push_call import send_push
from rlhf.client.push_messages import chunk_message
from rlhf.errors import DeadlineExceededError, NotReadyError, from_rpc_error
from rlhf.pushes import PushHeader, PushResult
from rlhf.serving.probe import LIVE
from rlhf.v1 import policy_pb2, policy_pb2_grpc

FULL_NAME = "rlhf.v1.PolicyService"
CALLER = "policy"
"""What a replica calls itself where clients are not listed."""
PROBE_PAUSE_SECONDS = 0.5
_PROBE = health_pb2.HealthCheckRequest(service=LIVE)
_UNANSWERED = frozenset({grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})


async def push_over_link(
    target: str, header: PushHeader, pieces: AsyncIterator[bytes], *, patience_seconds: float, deadline_seconds: float
) -> PushResult:
    """Pushes to one replica; returns when it serves the weights.

    The token and the certificate are those that the environment names, as for any client.

    Args:
        target: "host:port".
        pieces: the payload, piece by piece; it ends when the push may be committed.
        patience_seconds: how long the replica may leave health checks unanswered while it has the push.
    Raises: ServiceError. The replica's weights are then unchanged, unless it was lost while it swapped them.
    """
    options = {"service": FULL_NAME, "retried_methods": (), "own_connections": True, "caller": CALLER}
    async with open_channel(target, **options) as channel:  # type: ignore[arg-type]
        talking = asyncio.ensure_future(_talk(channel, _messages(header, pieces), deadline_seconds))
        silence = asyncio.ensure_future(_wait_for_silence(health_pb2_grpc.HealthStub(channel), patience_seconds))
        try:
            # A call outlives its deadline by little, but this wait must end whatever happens.
            both = {talking, silence}
            await asyncio.wait(both, timeout=deadline_seconds, return_when=asyncio.FIRST_COMPLETED)
            if talking.done():
                return talking.result()
            if silence.done():
                silence.result()
                raise NotReadyError(f"replica at {target}: does not answer health checks for {patience_seconds:g} s")
            raise DeadlineExceededError(f"replica at {target}: did not answer within the push's deadline")
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, "replica", target) from None
        finally:
            for task in (talking, silence):
                task.cancel()
            await asyncio.gather(talking, silence, return_exceptions=True)


async def _talk(channel: grpc.aio.Channel, messages: AsyncIterator[bytes], deadline_seconds: float) -> PushResult:
    """Sends the push and returns the answer. Raises: AioRpcError."""
    update: Any = channel.stream_unary(
        f"/{FULL_NAME}/UpdateWeights", response_deserializer=policy_pb2.UpdateWeightsResponse.FromString
    )
    call = update(timeout=deadline_seconds)
    try:
        answer = await send_push(call, messages)
    finally:
        call.cancel()
    if answer is not None:
        return codec.decode_push_result(answer)
    # It has the weights already, and said so before it had read everything.
    stub = policy_pb2_grpc.PolicyServiceStub(channel)
    model = await stub.GetModel(policy_pb2.PolicyServiceGetModelRequest(), timeout=deadline_seconds)
    return PushResult(policy_version=model.policy_version, weights_digest=model.weights_digest, pause_seconds=0.0)


async def _messages(header: PushHeader, pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yields the messages of a push, serialised."""
    yield policy_pb2.UpdateWeightsRequest(header=codec.encode_header(header)).SerializeToString()
    offset = 0
    async for piece in pieces:
        yield chunk_message(offset, (piece,))
        offset += len(piece)
    yield policy_pb2.UpdateWeightsRequest(commit=policy_pb2.WeightsCommit()).SerializeToString()


async def _wait_for_silence(health: health_pb2_grpc.HealthStub, patience_seconds: float) -> None:
    """Returns when the replica has answered no health check for that long."""
    loop = asyncio.get_running_loop()
    answered = loop.time()
    while (left := answered + patience_seconds - loop.time()) > 0:
        try:
            await health.Check(_PROBE, timeout=left)
            answered = loop.time()
        except grpc.aio.AioRpcError as error:
            if error.code() not in _UNANSWERED:  # whatever it says, it says something
                answered = loop.time()
        await asyncio.sleep(min(PROBE_PAUSE_SECONDS, patience_seconds / 4))
