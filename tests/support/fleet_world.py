"""A fleet of fake policy services, and weights to publish to it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import torch
from prometheus_client import CollectorRegistry

from rlhf.learning.ranks import ALONE, Ranks
from rlhf.learning.snapshot import SparsePatch, WeightsSnapshot
from rlhf.models.sparse_patch import diff
from rlhf.models.weights import tensor_info
from rlhf.weights import PatchPart, WeightsManifest
from services.trainer.config.sections import ServicesConfig
from services.trainer.fleet.fleet import Fleet
from services.trainer.fleet.metrics import FleetMetrics
from services.trainer.fleet.replica import Replica
from tests.support.fake_services import TOKENIZER, FakePolicy


def make_snapshot(version: int, previous: WeightsSnapshot | None = None) -> WeightsSnapshot:
    """Returns 1000 float32 numbers, of which the last is the version; with a patch from the previous ones."""
    tensor = torch.zeros(1000)
    tensor[-1] = version
    manifest = WeightsManifest((tensor_info("weight", tensor),))
    patch = None
    if previous is not None:
        change = diff(previous.tensors[0], tensor)
        part = PatchPart(change.changed_count, len(change.frame))
        patch = SparsePatch(previous.policy_version, previous.digest, (part,), (change.frame,))
    return WeightsSnapshot(version, manifest, manifest.digest, (tensor,), patch)


@dataclass
class FleetWorld:
    """A fleet that has started, and what it said."""

    fakes: list[FakePolicy]
    fleet: Fleet
    reports: list[str]
    registry: CollectorRegistry

    def replica(self, index: int) -> Replica:
        return self.fleet.replicas[self.fakes[index].target]

    @property
    def states(self) -> list[str]:
        return [self.replica(index).state for index in range(len(self.fakes))]

    async def until(self, condition: Callable[[], bool], seconds: float = 15.0) -> None:
        """Returns once the condition holds; fails after the given time."""
        async with asyncio.timeout(seconds):
            while not condition():
                await self.fleet.changed()

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


@asynccontextmanager
async def make_fleet(
    *fakes: FakePolicy, ranks: Ranks = ALONE, starts: bool = True, **services: Any
) -> AsyncIterator[FleetWorld]:
    """Yields a fleet of the fakes, which are started; it is impatient, so that tests are fast."""
    async with AsyncExitStack() as stack:
        for fake in fakes:
            await stack.enter_async_context(fake)
        settings = {
            "policy_targets": [fake.target for fake in fakes],
            "wait_for_services_seconds": 10,
            "replica_probe_seconds": 0.1,
            "replica_hang_seconds": 0.5,
            **services,
        }
        registry, reports = CollectorRegistry(), list[str]()
        fleet = Fleet(
            ServicesConfig.model_validate(settings),
            tokenizer_digest=TOKENIZER,
            report=reports.append,
            ranks=ranks,
            metrics=FleetMetrics(registry),
        )
        stack.push_async_callback(fleet.close)
        if starts:
            await fleet.start()
        yield FleetWorld(list(fakes), fleet, reports, registry)
