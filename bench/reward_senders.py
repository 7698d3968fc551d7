"""How the load of bench/reward_load.py travels: gRPC, JSON over HTTP, and the form that OpenRLHF sends."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any, Protocol

import aiohttp
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.reward_work import Request, RewardWork
from rlhf.v1 import reward_pb2

FORMS = ("grpc", "http", "get_reward")
DEADLINE_SECONDS = 300.0
DEFAULT_RETRY_SECONDS = 1.0
NUM_SYSTEMS = 8
"""The callers are shared out over so many systems, each with a name, and for gRPC with a connection, of its own."""

_HTTP_PATHS: Mapping[str, str] = MappingProxyType({"http": "/v1/score", "get_reward": "/get_reward"})
_HTTP_PROBES: Mapping[str, str] = MappingProxyType({"http": "/ready", "get_reward": "/health"})


class RefusedError(Exception):
    """The service has too much to do."""

    def __init__(self, retry_after_seconds: float) -> None:
        super().__init__(f"come again in {retry_after_seconds:g} s")
        self.retry_after_seconds = retry_after_seconds


class FailedError(Exception):
    """There is no reward, for another reason."""


class Sender(Protocol):
    """One way of calling."""

    async def score(self, place: int, caller: int) -> None:
        """Returns when the request at this place has its reward. Raises: RefusedError, FailedError."""

    async def probe(self) -> None:
        """Returns when the service has said that it is well. Raises: FailedError."""


@asynccontextmanager
async def open_sender(form: str, target: str, work: RewardWork) -> AsyncIterator[Sender]:
    """A sender of one of FORMS, whose requests are encoded."""
    if form == "grpc":
        channels = [
            grpc.aio.insecure_channel(target, options=[("grpc.use_local_subchannel_pool", 1)])
            for _ in range(NUM_SYSTEMS)
        ]
        yield _GrpcSender(channels, work)
        for channel in channels:
            await channel.close()
        return
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=DEADLINE_SECONDS)
    async with aiohttp.ClientSession(f"http://{target}", connector=connector, timeout=timeout) as session:
        yield _HttpSender(session, form, work)


class _GrpcSender:
    """Calls Score with one item."""

    def __init__(self, channels: list[grpc.aio.Channel], work: RewardWork) -> None:
        self._messages = [_grpc_message(request) for request in work.requests]
        self._score = [
            channel.unary_unary(
                "/rlhf.v1.RewardService/Score",
                request_serializer=bytes,
                response_deserializer=reward_pb2.ScoreResponse.FromString,
            )
            for channel in channels
        ]
        self._health = health_pb2_grpc.HealthStub(channels[0])

    async def score(self, place: int, caller: int) -> None:
        call = self._score[caller % len(self._score)]
        metadata = (("x-rlhf-caller", _system(caller)),)
        try:
            answer = await call(self._messages[place], metadata=metadata, timeout=DEADLINE_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                trailers = dict(error.trailing_metadata() or ())
                hint = float(trailers.get("retry-after-ms", 1000 * DEFAULT_RETRY_SECONDS)) / 1000
                raise RefusedError(hint) from None
            raise FailedError(f"{error.code().name}: {error.details()}") from None
        if answer.results[0].WhichOneof("outcome") != "reward":
            raise FailedError(answer.results[0].error.message)

    async def probe(self) -> None:
        try:
            answer = await self._health.Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise FailedError(f"health: {error.code().name}: {error.details()}") from None
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            raise FailedError(f"health: status {answer.status}")


class _HttpSender:
    """Posts JSON with one item."""

    def __init__(self, session: aiohttp.ClientSession, form: str, work: RewardWork) -> None:
        self._session = session
        self._path = _HTTP_PATHS[form]
        self._probe_path = _HTTP_PROBES[form]
        self._bodies = [json.dumps(_json_body(form, request)).encode() for request in work.requests]

    async def score(self, place: int, caller: int) -> None:
        headers = {"content-type": "application/json", "x-rlhf-caller": _system(caller)}
        try:
            async with self._session.post(self._path, data=self._bodies[place], headers=headers) as answer:
                body = await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise FailedError(f"HTTP: {error!r}") from None
        if answer.status == 429:
            raise RefusedError(float(answer.headers.get("retry-after", DEFAULT_RETRY_SECONDS)))
        if answer.status != 200:
            raise FailedError(f"HTTP {answer.status}: {body[:300]!r}")
        fields = json.loads(body)
        if "rewards" not in fields and "reward" not in fields["results"][0]:
            raise FailedError(f"no reward: {body[:300]!r}")

    async def probe(self) -> None:
        try:
            async with self._session.get(self._probe_path) as answer:
                await answer.read()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise FailedError(f"health: {error!r}") from None
        if answer.status != 200:
            raise FailedError(f"health: HTTP {answer.status}")


def _system(caller: int) -> str:
    return f"system-{caller % NUM_SYSTEMS}"


def _grpc_message(request: Request) -> bytes:
    item = reward_pb2.ScoreItem(text=reward_pb2.TextPair(prompt=request.prompt, completion=request.completion))
    return reward_pb2.ScoreRequest(items=[item]).SerializeToString()


def _json_body(form: str, request: Request) -> dict[str, Any]:
    if form == "http":
        return {"items": [{"text": {"prompt": request.prompt, "completion": request.completion}}]}
    return {"query": [request.context], "prompts": [], "labels": []}
