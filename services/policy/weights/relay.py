"""One link of a chain: a push from this replica to the next one, which may be dead, hung or of another mind."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, Protocol

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from rlhf.client import codec
from rlhf.client.channel import open_channel
from rlhf.client.push import chunk_message, send_push
from rlhf.client.rpc_errors import from_rpc_error
from rlhf.errors import DeadlineExceededError, NotReadyError, OverloadedError, ServiceError
from rlhf.logs import get_logger
from rlhf.serving.probe import LIVE
from rlhf.v1 import policy_pb2, policy_pb2_grpc
from rlhf.weights import ForwardedPush, PushHeader, PushResult

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


log = get_logger(__name__)

PIECE_BYTES = 1024 * 1024
"""Most bytes of one chunk that is handed on; as large as the trainer's own chunks, so that none waits for another."""
RETRY_SECONDS = 0.25
"""Pause before a replica that has another push under way is asked again."""
NO_DEADLINE_SECONDS = 3600.0
"""What a push gets that came without a deadline."""


class Receipt(Protocol):
    """What of a push has arrived here; it can be read again and again until the push has ended here."""

    def read(self, offset_bytes: int, num_bytes: int) -> bytes:
        """Returns that part of the payload, which must have arrived."""

    async def wait_beyond(self, offset_bytes: int) -> int:
        """Returns how many bytes of the payload have arrived, as soon as they are more than `offset_bytes`."""


class Forwarder:
    """Hands one push on. Between start() and the end of result() or cancel(), the receipt must stay readable."""

    def __init__(
        self, header: PushHeader, receipt: Receipt, *, patience_seconds: float, deadline_seconds: float | None
    ) -> None:
        """Sends nothing yet.

        Args:
            header: of the push as it came here; its forward_targets are who gets it.
            patience_seconds: how long a replica may leave health checks unanswered, or refuse because it has another
                push under way, before it is left out.
            deadline_seconds: how long the push that came here may still take; None for one without a deadline.
        """
        self._header = header
        self._receipt = receipt
        self._patience_seconds = patience_seconds
        self._deadline_seconds = NO_DEADLINE_SECONDS if deadline_seconds is None else deadline_seconds
        self._verified = asyncio.Event()
        self._task: asyncio.Task[tuple[ForwardedPush, ...]] | None = None

    def start(self) -> None:
        """Begins, if there is anybody to serve."""
        if self._header.forward_targets:
            self._ends = asyncio.get_running_loop().time() + self._deadline_seconds
            self._task = asyncio.create_task(self._forward())

    def commit(self) -> None:
        """Lets the others commit; call it when the push is whole and verified here."""
        self._verified.set()

    async def result(self) -> tuple[ForwardedPush, ...]:
        """Returns what became of the push at each target, in their order, when all of it is known."""
        return () if self._task is None else await self._task

    async def cancel(self) -> None:
        """Gives up what is still under way, and returns when nothing is read any more. May be called at any time."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({self._task})

    async def _forward(self) -> tuple[ForwardedPush, ...]:
        targets = self._header.forward_targets
        outcomes: tuple[ForwardedPush, ...] = ()
        while len(outcomes) < len(targets):
            outcomes += await self._serve(targets[len(outcomes)], targets[len(outcomes) + 1 :])
        return outcomes

    async def _serve(self, target: str, behind: tuple[str, ...]) -> tuple[ForwardedPush, ...]:
        """Returns what became of the push at a target, and at those behind it for which it has answered."""
        try:
            result = await self._push(target, behind)
        except ServiceError as error:
            log.warning("push not handed on", target=target, error=str(error))
            return (ForwardedPush(target=target, error=str(error)),)
        served = ForwardedPush(
            target=target,
            policy_version=result.policy_version,
            weights_digest=result.weights_digest,
            pause_seconds=result.pause_seconds,
            stage_seconds=result.stage_seconds,
        )
        # A replica that served the weights already has handed nothing on, and says so by naming nobody.
        named = tuple(each.target for each in result.forwarded)
        return (served, *result.forwarded) if named == behind[: len(named)] else (served,)

    async def _push(self, target: str, behind: tuple[str, ...]) -> PushResult:
        """Pushes to a target, again while it has another push under way. Raises: ServiceError."""
        loop = asyncio.get_running_loop()
        header = replace(self._header, forward_targets=behind)
        gives_up = loop.time() + self._patience_seconds
        while True:
            left = self._ends - loop.time()
            # Each link gets a little less time than the one before it, which has to report how it ended.
            deadline_seconds = max(0.0, left - min(1.0, left / 10))
            try:
                return await push_over_link(
                    target,
                    header,
                    self._pieces(),
                    patience_seconds=self._patience_seconds,
                    deadline_seconds=deadline_seconds,
                )
            except OverloadedError:
                # Such as one that a link before it, dead by now, has left behind: it is given up after a silence.
                if loop.time() >= gives_up:
                    raise
                await asyncio.sleep(RETRY_SECONDS)

    async def _pieces(self) -> AsyncIterator[bytes]:
        """Yields the payload as it arrives, and ends when it is verified."""
        offset = 0
        while offset < self._header.payload_bytes:
            arrived = await self._receipt.wait_beyond(offset)
            while offset < arrived:
                piece = self._receipt.read(offset, min(PIECE_BYTES, arrived - offset))
                yield piece
                offset += len(piece)
        await self._verified.wait()
