"""One link of a chain: a push from this replica to the next one, which may be dead, hung or of another mind."""

import asyncio
from collections.abc import AsyncIterator

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from rlhf_services.common import codec
from rlhf_services.common.channel import open_channel
from rlhf_services.common.errors import DeadlineExceededError, NotReadyError, from_rpc_error
from rlhf_services.common.probe import LIVE
from rlhf_services.common.pushes import PushHeader, PushResult
from rlhf_services.v1 import policy_pb2, policy_pb2_grpc

FULL_NAME = "rlhf_services.v1.PolicyService"
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
        call = policy_pb2_grpc.PolicyServiceStub(channel).UpdateWeights(timeout=deadline_seconds)
        talking = asyncio.ensure_future(_talk(call, header, pieces))
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
            call.cancel()
            for task in (talking, silence):
                task.cancel()
            await asyncio.gather(talking, silence, return_exceptions=True)


async def _talk(
    call: grpc.aio.StreamUnaryCall[policy_pb2.UpdateWeightsRequest, policy_pb2.UpdateWeightsResponse],
    header: PushHeader,
    pieces: AsyncIterator[bytes],
) -> PushResult:
    """Sends the push and returns the answer. Raises: AioRpcError."""
    try:
        await call.write(policy_pb2.UpdateWeightsRequest(header=codec.encode_header(header)))
        offset = 0
        async for piece in pieces:
            chunk = policy_pb2.WeightsChunk(offset_bytes=offset, data=piece)
            await call.write(policy_pb2.UpdateWeightsRequest(chunk=chunk))
            offset += len(piece)
        await call.write(policy_pb2.UpdateWeightsRequest(commit=policy_pb2.WeightsCommit()))
        await call.done_writing()
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        # The replica has ended the call before it had everything, and its answer says why: a fault, or that it serves
        # these weights already.
        pass
    return codec.decode_push_result(await call)


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
