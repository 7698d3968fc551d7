"""Replicas that relay a push and keep a push in memory, over real sockets; each can be made to fail in its own way."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from rlhf.client import codec
from rlhf.serving.probe import LIVE
from rlhf.v1 import policy_pb2, policy_pb2_grpc
from rlhf.weights import PushResult
from services.policy.weights.relay import Relay

PATIENCE_SECONDS = 0.4


class MemorySource:
    """Implements relay.Source."""

    def __init__(self, data: bytes = b"") -> None:
        self._data = bytearray(data)
        self._arrived = asyncio.Event()

    @property
    def data(self) -> bytes:
        return bytes(self._data)

    def arrive(self, data: bytes) -> None:
        self._data += data
        self._arrived.set()
        self._arrived = asyncio.Event()

    def read(self, offset_bytes: int, num_bytes: int) -> bytes:
        return bytes(self._data[offset_bytes : offset_bytes + num_bytes])

    async def wait_beyond(self, offset_bytes: int) -> int:
        while len(self._data) <= offset_bytes:
            await self._arrived.wait()
        return len(self._data)


class RelayingReplica(policy_pb2_grpc.PolicyServiceServicer):
    """Takes pushes and relays them. `served` is the payload it has committed; what makes it fail is set by tests."""

    def __init__(self) -> None:
        self.target = ""
        self.served = b""
        self.asked: list[tuple[str, ...]] = []
        """The relay_targets of each push that came."""
        self.tokens: list[str | None] = []
        self.was_asked = asyncio.Event()
        self.has_ended = asyncio.Event()
        self.refusals: list[grpc.StatusCode] = []
        """Answers to the next pushes."""
        self.has_it_already = False
        self.dies_after: int | None = None
        """Bytes of the payload."""
        self.never_ends = False
        self.server: grpc.aio.Server

    async def UpdateWeights(self, request_iterator: Any, context: Any) -> policy_pb2.UpdateWeightsResponse:
        requests = aiter(request_iterator)
        header = codec.decode_header((await anext(requests)).header)
        self.asked.append(header.relay_targets)
        self.was_asked.set()
        self.tokens.append(dict(context.invocation_metadata()).get("authorization"))
        if self.refusals:
            await context.abort(self.refusals.pop(0), "it serves version 7")
        result = PushResult(policy_version=header.policy_version, weights_digest=header.weights_digest, pause_seconds=1)
        if self.has_it_already:
            return codec.encode_push_result(result)
        source = MemorySource()
        left = context.time_remaining()
        relay = Relay(header, source, patience_seconds=PATIENCE_SECONDS, deadline_seconds=left)
        relay.start()
        try:
            await self._receive(requests, source)
            if self.never_ends:
                await asyncio.sleep(60)
            relay.commit()
            self.served = source.data
            relayed = await relay.result()
        finally:
            await relay.cancel()
            self.has_ended.set()
        return policy_pb2.UpdateWeightsResponse(
            policy_version=result.policy_version,
            weights_digest=result.weights_digest,
            relayed=codec.encode_push_result(
                PushResult(policy_version=0, weights_digest="", pause_seconds=0, relayed=relayed)
            ).relayed,
        )

    async def _receive(self, requests: AsyncIterator[Any], source: MemorySource) -> None:
        async for request in requests:
            if request.WhichOneof("part") == "commit":
                return
            source.arrive(request.chunk.data)
            if self.dies_after is not None and len(source.data) >= self.dies_after:
                # Not by this call itself, which ends with its caller: a stop must not be cut short.
                self._stopping = asyncio.create_task(self.server.stop(None))
                await asyncio.sleep(60)
        raise ConnectionError("the push was given up")


@asynccontextmanager
async def replicas_of(num_replicas: int) -> AsyncIterator[list[RelayingReplica]]:
    """Serves that many replicas, healthy."""
    replicas = []
    for _ in range(num_replicas):
        replica = RelayingReplica()
        replica.server = grpc.aio.server()
        policy_pb2_grpc.add_PolicyServiceServicer_to_server(replica, replica.server)
        servicer = health.aio.HealthServicer()
        await servicer.set(LIVE, health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, replica.server)
        replica.target = f"127.0.0.1:{replica.server.add_insecure_port('127.0.0.1:0')}"
        await replica.server.start()
        replicas.append(replica)
    try:
        yield replicas
    finally:
        await asyncio.gather(*(replica.server.stop(None) for replica in replicas))


@asynccontextmanager
async def silent_server() -> AsyncIterator[str]:
    """Gives the target of a server that accepts connections and never says a word."""
    writers = []
    server = await asyncio.start_server(lambda _, writer: writers.append(writer), "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in writers:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()


async def closed_target() -> str:
    """Returns a target where nobody listens."""
    server = await asyncio.start_server(lambda *_: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return f"127.0.0.1:{port}"
