"""Who gets which prompts, and what becomes of them when a replica fails, is full or has other weights."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry

from rlhf.errors import InternalError, NotReadyError
from rlhf.learning.snapshot import WeightsSnapshot
from rlhf.models.weights import tensor_info
from rlhf.rollout import Prompt, Rollout, Sampling
from rlhf.weights import WeightsManifest
from services.trainer.config.sections import ServicesConfig
from services.trainer.fleet.dispatch import Dispatcher, IdleClock
from services.trainer.fleet.fleet import Fleet
from services.trainer.fleet.metrics import FleetMetrics
from tests.support.fake_services import TOKENIZER, FakePolicy
from tests.support.trainer_world import until

SAMPLING = Sampling(max_new_tokens=8)
PAIRS = Sampling(max_new_tokens=8, completions_per_prompt=2)


def prompts(num: int, prefix: str = "") -> list[Prompt]:
    return [Prompt(group_id=f"{prefix}{index}", prompt_ids=[3, index], seed=index) for index in range(num)]


def snapshot(policy_version: int) -> WeightsSnapshot:
    tensors = (torch.arange(4, dtype=torch.float32),)
    manifest = WeightsManifest(tuple(tensor_info("weight", tensor) for tensor in tensors))
    return WeightsSnapshot(policy_version, manifest, manifest.digest, tensors)


@dataclass
class World:
    """Fake replicas, a fleet of them, and what has arrived."""

    policies: list[FakePolicy]
    fleet: Fleet
    dispatcher: Dispatcher
    registry: CollectorRegistry
    arrived: list[Rollout] = field(default_factory=list)

    async def sample(
        self, asked: list[Prompt], sampling: Sampling = SAMPLING, *, version: int = 0, known: set[str] | None = None
    ) -> None:
        await self.dispatcher.sample(
            asked,
            sampling,
            self.arrived.append,
            min_policy_version=version,
            tokenizer_digest=TOKENIZER,
            known=known,
        )

    def asked_of(self, index: int) -> list[list[str]]:
        """The group_ids of each call of a replica."""
        return [[prompt.group_id for prompt in request.prompts] for request in self.policies[index].requests]

    def count(self, name: str) -> float | None:
        return self.registry.get_sample_value(f"rlhf_trainer_prompts_{name}_total")

    @property
    def ids(self) -> list[str]:
        return sorted(rollout.rollout_id for rollout in self.arrived)


@asynccontextmanager
async def make_world(num_policies: int = 1, *, max_sequences: int = 1000, **settings: Any) -> AsyncIterator[World]:
    policies = [FakePolicy() for _ in range(num_policies)]
    async with AsyncExitStack() as stack:
        for fake in policies:
            fake.max_sequences = max_sequences
            await stack.enter_async_context(fake)
        policies.sort(key=lambda fake: fake.target)  # the fleet's order
        config = ServicesConfig(
            policy_targets=[policy.target for policy in policies],
            **{"wait_for_services_seconds": 20, "replica_probe_seconds": 0.1, **settings},
        )
        registry = CollectorRegistry()
        metrics = FleetMetrics(registry)
        fleet = Fleet(config, tokenizer_digest=TOKENIZER, report=lambda message: None, metrics=metrics)
        stack.push_async_callback(fleet.close)
        await fleet.start()
        while len(fleet.ready()) < num_policies:
            await fleet.changed()
        yield World(policies, fleet, Dispatcher(fleet, config), registry)


async def test_one_replica_with_room_gets_everything_in_one_call() -> None:
    async with make_world() as world:
        await world.sample(prompts(5), PAIRS)
        assert world.asked_of(0) == [["0", "1", "2", "3", "4"]]
        assert len(world.ids) == len(set(world.ids)) == 10


async def test_each_prompt_goes_to_the_replica_with_the_least_to_do() -> None:
    async with make_world(num_policies=2) as world:
        first, second = world.fleet.replicas.values()
        first.outstanding = 5  # of somebody else: 0, 2 and 4 even them out (2, 4, 6), and then the first has less
        await world.sample(prompts(5), PAIRS)
        by_target = {fake.target: world.asked_of(index) for index, fake in enumerate(world.policies)}
        assert by_target[first.target] == [["3"]]
        assert by_target[second.target] == [["0", "1", "2", "4"]]


async def test_no_replica_is_asked_for_more_than_it_samples_side_by_side() -> None:
    async with make_world(max_sequences=4) as world:
        held = world.policies[0].hold_after_first = asyncio.Event()
        running = asyncio.create_task(world.sample(prompts(5), PAIRS))
        await world.policies[0].asked.wait()
        await asyncio.sleep(0.05)
        # Of the 4 one has arrived: the 3 that have not, and a pair, would be 5.
        assert world.asked_of(0) == [["0", "1"]]
        held.set()
        await running
        assert max(len(request.prompts) for request in world.policies[0].requests) == 2
        assert len(world.ids) == len(set(world.ids)) == 10


async def test_a_group_larger_than_the_capacity_has_the_replica_for_itself() -> None:
    async with make_world(max_sequences=1) as world:
        await world.sample(prompts(3), PAIRS)
        assert world.asked_of(0) == [["0"], ["1"], ["2"]]


async def test_what_a_lost_replica_owes_comes_from_another_and_nothing_comes_twice() -> None:
    async with make_world(num_policies=2) as world:
        world.policies[0].break_after = 3  # of prompts 4 and 2 it sends 4/0, 4/1 and 2/0: 2 and 0 are owed
        await world.sample(prompts(6), PAIRS)
        assert world.asked_of(0) == [["0", "2", "4"]]
        assert world.asked_of(1) == [["1", "3", "5"], ["0", "2"]]
        assert len(world.ids) == len(set(world.ids)) == 12
        assert world.count("redispatched") == 2
        assert world.count("retried") == 0
        assert all(replica.outstanding == 0 for replica in world.fleet.replicas.values())


async def test_prompts_of_a_replica_that_is_given_up_go_to_another_although_its_call_still_stands() -> None:
    async with make_world(num_policies=2) as world:
        world.policies[0].hold_after_first = asyncio.Event()
        running = asyncio.create_task(world.sample(prompts(4)))

        async def has_first() -> bool:
            return "2/0" in world.ids

        await until(has_first)
        hung = world.fleet.replicas[world.policies[0].target]
        world.fleet.lost(hung, NotReadyError("it hangs"))
        await running
        assert world.asked_of(1) == [["1", "3"], ["0"]]
        assert world.ids == ["0/0", "1/0", "2/0", "3/0"]
        assert world.count("redispatched") == 1


async def test_a_replica_without_room_is_asked_again_later() -> None:
    async with make_world() as world:
        world.policies[0].refusals = 1
        await world.sample(prompts(3))
        assert world.asked_of(0) == [["0", "1", "2"], ["0", "1", "2"]]
        assert (world.count("retried"), world.count("redispatched")) == (3, 0)


async def test_a_replica_with_older_weights_is_brought_to_the_published_ones_before_it_samples() -> None:
    async with make_world() as world:
        await world.fleet.push(snapshot(3))
        world.policies[0].version, world.policies[0].digest = 0, ""  # started anew, and nobody has looked yet
        await world.sample(prompts(2), version=3)
        assert world.policies[0].pushed_versions == [3, 3]
        assert all(rollout.policy_versions == [3, 3] for rollout in world.arrived)


async def test_what_is_known_is_not_asked_for_unless_its_group_lacks_something() -> None:
    async with make_world() as world:
        await world.sample(prompts(3), PAIRS, known={"0/0", "0/1", "1/1"})
        assert world.asked_of(0) == [["1", "2"]]
        assert world.ids == ["1/0", "2/0", "2/1"]


async def test_the_older_sampling_goes_first_and_the_younger_gets_the_room_that_is_left() -> None:
    async with make_world(max_sequences=2) as world:
        held = world.policies[0].hold_after_first = asyncio.Event()
        older = asyncio.create_task(world.sample(prompts(4, "old-")))
        await world.policies[0].asked.wait()
        younger = asyncio.create_task(world.sample(prompts(2, "new-")))
        held.set()
        await asyncio.gather(older, younger)
        order = [group_id for call in world.asked_of(0) for group_id in call]
        assert order == ["old-0", "old-1", "old-2", "old-3", "new-0", "new-1"]


async def test_a_sampling_that_is_given_up_lets_the_next_one_go_on_and_leaves_nothing_outstanding() -> None:
    async with make_world(max_sequences=1) as world:
        world.policies[0].hold_after_first = asyncio.Event()
        older = asyncio.create_task(world.sample(prompts(3), PAIRS))
        await world.policies[0].asked.wait()
        younger = asyncio.create_task(world.sample(prompts(1, "new-")))
        await asyncio.sleep(0.05)
        older.cancel()
        await asyncio.gather(older, return_exceptions=True)
        world.policies[0].hold_after_first = None
        await younger
        assert "new-0/0" in world.ids
        assert [replica.outstanding for replica in world.fleet.replicas.values()] == [0]


async def test_a_prompt_that_fails_wherever_it_is_sent_ends_in_an_error() -> None:
    async with make_world(wait_for_services_seconds=0.5) as world:
        world.policies[0].refusals = 1000
        with pytest.raises(NotReadyError, match=r"too much in flight; the same prompt has failed \d+ times"):
            async with asyncio.timeout(15):
                await world.sample(prompts(1))


class ForgetfulPolicy(FakePolicy):
    """Ends its streams early, as if they were whole."""

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        async for response in super().Generate(request, context):
            yield response
            return


async def test_a_stream_that_ends_early_without_an_error_is_a_fault_of_the_service() -> None:
    async with ForgetfulPolicy() as fake:
        config = ServicesConfig(policy_targets=[fake.target])
        fleet = Fleet(config, tokenizer_digest=TOKENIZER, report=lambda message: None)
        try:
            await fleet.start()
            with pytest.raises(InternalError, match=r"ended its stream without 1 rollouts, such as '0/0'"):
                await Dispatcher(fleet, config).sample(
                    prompts(2), SAMPLING, lambda rollout: None, min_policy_version=0, tokenizer_digest=TOKENIZER
                )
        finally:
            await fleet.close()


def test_idle_is_the_share_of_the_replicas_time_in_which_nothing_was_asked_of_them() -> None:
    now = [100.0]
    first, second, away = (SimpleNamespace(state=state, outstanding=0) for state in ("ready", "joining", "away"))
    fleet: Any = SimpleNamespace(replicas={"a": first, "b": second, "c": away})
    clock = IdleClock(fleet, now=lambda: now[0])
    assert clock.read() == 0.0
    first.outstanding = 2
    now[0] = 103.0  # three seconds: the first works, the second does not
    clock.tick()
    second.outstanding = 1
    now[0] = 104.0  # one second: both do; the one that is away is not counted
    assert clock.read() == 3 / 8
    assert clock.read() == 0.0
