"""Real replicas, each a process of its own, that are killed, stopped or wrong: each ends in a correct fleet."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rlhf.learning.snapshot import WeightsSnapshot
from rlhf.models.loading import load_tokenizer, tokenizer_digest
from rlhf.models.weights import read_checkpoint, tensor_info
from rlhf.rollout import Prompt, Rollout, Sampling
from rlhf.weights import Encoding, WeightsManifest
from services.trainer.config.sections import ServicesConfig
from services.trainer.fleet.dispatch import Dispatcher
from services.trainer.fleet.fleet import Fleet
from tests.support.policy_processes import PolicyProcess, policy_processes, start_policy
from tests.support.tiny_model import make_tiny_model
from tests.support.trainer_world import until

SAMPLING = Sampling(max_new_tokens=4, completions_per_prompt=2)
PROMPTS = [Prompt(group_id=str(index), prompt_ids=[5, 6, 7 + index], seed=10 * index) for index in range(8)]
PATIENCE_SECONDS = 20.0
"""Nothing below may take longer: a hang is a failure."""


class Snapshot(WeightsSnapshot):
    """Has something done when half of its tensors are sent, once."""

    half_way: Callable[[], None] | None = None

    def payload(self, encoding: Encoding) -> Iterator[bytes | memoryview]:
        for index, piece in enumerate(super().payload(encoding)):
            if index == len(self.tensors) // 2 and self.half_way is not None:
                half_way = self.half_way
                object.__setattr__(self, "half_way", None)
                half_way()
            yield piece


def snapshot(model: Path, version: int) -> Snapshot:
    """Returns other weights of the model's shapes: the version is their seed."""
    path = model.parent / f"version-{version}"
    if not path.exists():
        make_tiny_model(path, seed=version)
    named = list(read_checkpoint(path, "float32"))
    manifest = WeightsManifest(tuple(tensor_info(name, tensor) for name, tensor in named))
    return Snapshot(version, manifest, manifest.digest, tuple(tensor for _, tensor in named))


@dataclass
class World:
    """Two replicas, the fleet of them, and what they sampled."""

    model: Path
    folder: Path
    processes: list[PolicyProcess]
    fleet: Fleet
    dispatcher: Dispatcher
    digest: str
    reports: list[str]
    arrived: list[Rollout] = field(default_factory=list)

    async def sample(self, version: int = 0) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self.dispatcher.sample(
                PROMPTS, SAMPLING, self.arrived.append, min_policy_version=version, tokenizer_digest=self.digest
            )

    async def push(self, version: int) -> Snapshot:
        pushed = snapshot(self.model, version)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self.fleet.push(pushed)
        return pushed

    def ready(self) -> set[str]:
        return {replica.target for replica in self.fleet.ready()}

    async def until_ready(self, *processes: PolicyProcess) -> None:
        async def are() -> bool:
            return self.ready() == {each.target for each in processes}

        await until(are, PATIENCE_SECONDS)

    def require_each_once(self, version: int) -> None:
        """Checks that each rollout came once, sampled by one version."""
        expected = sorted(f"{prompt.group_id}/{index}" for prompt in PROMPTS for index in range(2))
        assert sorted(each.rollout_id for each in self.arrived) == expected
        assert {number for each in self.arrived for number in each.policy_versions} == {version}


@asynccontextmanager
async def make_world(
    folder: Path, model: Path, *, generate_seconds: float = 0.0, swap_seconds: float = 0.0
) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        processes = stack.enter_context(policy_processes())
        for _ in range(2):
            start_policy(processes, model, folder, generate_seconds=generate_seconds, swap_seconds=swap_seconds)
        listed = folder / "replicas"
        listed.write_text("".join(f"{each.target}\n" for each in processes))
        config = ServicesConfig(
            policy_targets=[f"file://{listed}"],
            wait_for_services_seconds=PATIENCE_SECONDS,
            replica_probe_seconds=0.2,
            replica_hang_seconds=1.0,
        )
        digest = tokenizer_digest(load_tokenizer(model))
        reports: list[str] = []
        fleet = Fleet(config, tokenizer_digest=digest, report=reports.append)
        stack.push_async_callback(fleet.close)
        await fleet.start()
        world = World(model, folder, processes, fleet, Dispatcher(fleet, config), digest, reports)
        await world.until_ready(*processes)
        yield world


async def when(condition: Callable[[], bool]) -> None:
    async def holds() -> bool:
        return condition()

    await until(holds, PATIENCE_SECONDS)


def kill(process: PolicyProcess) -> None:
    process.kill()


def stop(process: PolicyProcess) -> None:
    process.signal(signal.SIGSTOP)


def come_back(process: PolicyProcess) -> None:
    """Goes on if it was stopped; starts anew, with its first weights, if it was killed."""
    if process.process.is_alive():
        process.signal(signal.SIGCONT)
    else:
        process.swap_begun.unlink(missing_ok=True)
        process.start()


Fault = Callable[[PolicyProcess], None]


@pytest.mark.parametrize("fault", [kill, stop])
async def test_a_replica_lost_during_generation_leaves_its_prompts_to_the_other(
    tmp_path: Path, tiny_model_path: Path, fault: Fault
) -> None:
    async with make_world(tmp_path, tiny_model_path, generate_seconds=1.0) as world:
        victim, other = world.processes
        running = asyncio.create_task(world.sample())
        # Of each of its four prompts the first completion has come, and the second has not.
        await when(lambda: len(world.arrived) == 8 and world.fleet.replicas[victim.target].outstanding == 4)
        fault(victim)
        await running
        world.require_each_once(version=0)
        assert world.ready() == {other.target}
        assert world.fleet.metrics.prompts_redispatched._value.get() == 4
        come_back(victim)
        await world.until_ready(victim, other)


@pytest.mark.parametrize("fault", [kill, stop])
async def test_a_replica_lost_during_the_swap_is_left_out_until_it_has_the_weights(
    tmp_path: Path, tiny_model_path: Path, fault: Fault
) -> None:
    async with make_world(tmp_path, tiny_model_path, swap_seconds=0.5) as world:
        victim, other = world.processes
        pushing = asyncio.create_task(world.push(2))
        await when(victim.swap_begun.exists)
        fault(victim)
        await pushing
        assert world.ready() == {other.target}
        await world.sample(version=2)
        world.require_each_once(version=2)
        come_back(victim)
        await world.until_ready(victim, other)
        assert world.fleet.replicas[victim.target].served == world.fleet.replicas[other.target].served


@pytest.mark.parametrize("fault", [kill, stop])
async def test_a_replica_lost_in_the_middle_of_a_push_is_left_out_until_it_has_the_weights(
    tmp_path: Path, tiny_model_path: Path, fault: Fault
) -> None:
    async with make_world(tmp_path, tiny_model_path) as world:
        victim, other = world.processes
        pushed = await world.push(2)
        # It starts anew, so it alone is pushed to; and is gone when it has half of the weights.
        faults: list[PolicyProcess] = []

        def half_way() -> None:
            fault(victim)
            faults.append(victim)

        object.__setattr__(pushed, "half_way", half_way)
        kill(victim)
        come_back(victim)
        await when(lambda: bool(faults))
        await when(lambda: world.fleet.replicas[victim.target].state == "away")
        await world.sample(version=2)
        world.require_each_once(version=2)
        assert world.ready() == {other.target}
        come_back(victim)
        await world.until_ready(victim, other)


async def test_a_replica_that_serves_another_model_is_set_aside_and_the_others_go_on(
    tmp_path: Path, tiny_model_path: Path
) -> None:
    async with make_world(tmp_path, tiny_model_path) as world:
        first, second = world.processes
        await world.push(2)
        untied = make_tiny_model(tmp_path / "untied", tie_word_embeddings=False)
        stranger = start_policy(world.processes, untied, tmp_path)
        listed = tmp_path / "replicas"
        listed.write_text("".join(f"{each.target}\n" for each in world.processes))
        await when(
            lambda: (
                stranger.target in world.fleet.replicas and world.fleet.replicas[stranger.target].state == "set_aside"
            )
        )
        assert "lm_head.weight" in world.fleet.replicas[stranger.target].reason
        assert any(stranger.target in report and "set aside" in report for report in world.reports)
        await world.sample(version=2)
        world.require_each_once(version=2)
        assert world.ready() == {first.target, second.target}
