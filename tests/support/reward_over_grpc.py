"""A reward core behind a real gRPC server on a free port, and the stub of the bare protocol."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import grpc
from prometheus_client import CollectorRegistry

from rlhf.serving.directory import REWARD
from rlhf.serving.server import ServiceServer, Side
from rlhf.v1 import reward_pb2, reward_pb2_grpc
from services.reward.config import LimitsConfig, RewardServerConfig
from services.reward.core import RewardCore
from services.reward.metrics import RewardMetrics
from services.reward.scorers.scorer import Scorer
from services.reward.servicer import RewardServicer

# Each channel has a connection of its own; by default gRPC shares one among the channels of a process.
OWN_CONNECTION = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
)


def reward_server(core: RewardCore, registry: CollectorRegistry, *sides: Side, **server: Any) -> ServiceServer:
    """Returns the service around a core, not started, on free ports. Args: server: fields of RewardServerConfig."""
    local = {"host": "127.0.0.1", "port": 0, "metrics_port": 0, "drain_seconds": 1.0}
    register = partial(reward_pb2_grpc.add_RewardServiceServicer_to_server, RewardServicer(core))
    return ServiceServer(REWARD, RewardServerConfig(**local | server), register, core, registry=registry, sides=sides)


@asynccontextmanager
async def serving(core: RewardCore, registry: CollectorRegistry) -> AsyncIterator[str]:
    """Gives the target, once the core is loaded."""
    server = reward_server(core, registry)
    await server.start()
    try:
        await server.wait_ready()
        yield f"127.0.0.1:{server.port}"
    finally:
        await server.stop()


@asynccontextmanager
async def serving_scorer(scorer: Scorer[Any], **limits: Any) -> AsyncIterator[tuple[str, CollectorRegistry]]:
    """Gives the target of a service around the scorer, and its metrics."""
    registry = CollectorRegistry()
    core = RewardCore(lambda: scorer, LimitsConfig(**limits), RewardMetrics(registry))
    async with serving(core, registry) as target:
        yield target, registry


@asynccontextmanager
async def connected(target: str) -> AsyncIterator[Any]:
    """Gives a stub with a connection of its own."""
    async with grpc.aio.insecure_channel(target, options=OWN_CONNECTION) as channel:
        yield reward_pb2_grpc.RewardServiceStub(channel)


def text_item(completion: str, prompt: str = "prompt") -> reward_pb2.ScoreItem:
    return reward_pb2.ScoreItem(text=reward_pb2.TextPair(prompt=prompt, completion=completion))


def token_item(prompt_ids: list[int], completion_ids: list[int]) -> reward_pb2.ScoreItem:
    return reward_pb2.ScoreItem(tokens=reward_pb2.TokenPair(prompt_ids=prompt_ids, completion_ids=completion_ids))
