"""The real policy, reference and reward services around tiny models, in a thread of their own, on free ports."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from prometheus_client import CollectorRegistry

from rlhf.serving.batching.limits import BatchLimitsConfig as ReferenceLimits
from rlhf.serving.directory import REFERENCE
from rlhf.serving.server import ServiceServer
from rlhf.v1 import reference_pb2_grpc
from services.policy.config import ModelConfig as PolicyModelConfig
from services.policy.config import PolicyConfig, PolicyServerConfig, TransformersConfig
from services.policy.server import make_engine, make_server
from services.reference.config import ModelConfig as ReferenceModelConfig
from services.reference.config import ReferenceServerConfig
from services.reference.core import ReferenceCore, ReferenceMetrics
from services.reference.server import build_scorer as build_reference_scorer
from services.reference.servicer import ReferenceServicer
from services.reward.config import LimitsConfig as RewardLimits
from services.reward.core import RewardCore
from services.reward.metrics import RewardMetrics
from services.reward.scorers.config import ScorerConfig
from services.reward.scorers.config import build_scorer as build_reward_scorer
from tests.support.reward_over_grpc import reward_server

LOCAL = {"host": "127.0.0.1", "port": 0, "metrics_port": 0, "drain_seconds": 0.0}


def make_policy(path: Path, *, single_items: bool = False) -> ServiceServer:
    config = PolicyConfig(
        server=PolicyServerConfig(**LOCAL),
        model=PolicyModelConfig(path=path, dtype="float32", engine="transformers"),
        transformers=TransformersConfig(max_num_seqs=1) if single_items else TransformersConfig(),
    )
    return make_server(config, make_engine(config), CollectorRegistry())


def make_reward(scorer: ScorerConfig, *, single_items: bool = False) -> ServiceServer:
    registry = CollectorRegistry()
    limits = RewardLimits(max_batch_tokens=1) if single_items else RewardLimits()
    core = RewardCore(partial(build_reward_scorer, scorer), limits, RewardMetrics(registry))
    return reward_server(core, registry, drain_seconds=0.0)


def make_reference(path: Path, *, single_items: bool = False) -> ServiceServer:
    registry = CollectorRegistry()
    model = ReferenceModelConfig(path=str(path), dtype="float32", device="cpu")
    limits = ReferenceLimits(max_batch_tokens=1) if single_items else ReferenceLimits()
    core = ReferenceCore(partial(build_reference_scorer, model), limits, ReferenceMetrics(registry))
    register = partial(reference_pb2_grpc.add_ReferenceServiceServicer_to_server, ReferenceServicer(core))
    server = ReferenceServerConfig(**LOCAL)
    return ServiceServer(REFERENCE, server, register, core, registry=registry)


@dataclass(frozen=True)
class Targets:
    """Where the services are."""

    policy: str
    reward: str
    reference: str


@contextmanager
def serving(policy_path: Path, scorer: ScorerConfig, *, single_items: bool = False) -> Iterator[Targets]:
    """Serves until the block ends. Args: single_items: compute each item by itself, so that its bits do not depend on
    what else is asked for."""
    makers = [
        partial(make_policy, policy_path, single_items=single_items),
        partial(make_reward, scorer, single_items=single_items),
        partial(make_reference, policy_path, single_items=single_items),
    ]
    ports: list[int] = []
    ready, done = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(_serve(makers, ports, ready, done)))
    thread.start()
    try:
        assert ready.wait(60), "the services did not become ready within 60 s"
        yield Targets(*(f"127.0.0.1:{port}" for port in ports))
    finally:
        done.set()
        thread.join()


async def _serve(
    makers: list[Callable[[], ServiceServer]], ports: list[int], ready: threading.Event, done: threading.Event
) -> None:
    servers = [make() for make in makers]
    for server in servers:
        await server.start()
        await server.wait_ready()  # one after the other: transformers cannot load models in two threads at once
    ports += [server.port for server in servers]
    ready.set()
    await asyncio.to_thread(done.wait)
    for server in servers:
        await server.stop()
