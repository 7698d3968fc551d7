"""Pushing a model's weights, and knowing that they arrived."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from rlhf.errors import ConfigError, RunError
from rlhf.learning.config import LoraConfig, OptimizerConfig
from rlhf.learning.ranks import ALONE, Ranks
from rlhf.learning.trained_model import TrainedModel
from rlhf.models.loading import load_policy
from rlhf.models.weights import model_manifest
from services.trainer.config.sections import ServicesConfig
from services.trainer.fleet.peers import Peers
from services.trainer.fleet.policy_pushes import PolicyPushes
from services.trainer.fleet.push import FleetPush
from tests.support.fake_services import TOKENIZER, FakePolicy


@dataclass
class World:
    """A model, and the services that get its weights."""

    model: TrainedModel
    pushes: PolicyPushes

    async def push(self, version: int) -> FleetPush:
        await self.pushes.push(version)
        return self.pushes.report()


@asynccontextmanager
async def make_world(
    path: Path, *fakes: FakePolicy, lora: LoraConfig | None = None, ranks: Ranks = ALONE
) -> AsyncIterator[World]:
    async with AsyncExitStack() as stack:
        for fake in fakes:
            await stack.enter_async_context(fake)
        config = ServicesConfig(policy_targets=[fake.target for fake in fakes], wait_for_services_seconds=20)
        peers = await stack.enter_async_context(Peers(config, tokenizer_digest=TOKENIZER, report=print, ranks=ranks))
        await peers.fleet.start()
        model = TrainedModel("policy", load_policy(path, dtype="float32"), OptimizerConfig(), total_steps=1, lora=lora)
        if ranks is not None:
            model.ranks = ranks
        yield World(model, PolicyPushes(model, peers, ranks))


async def test_every_policy_service_gets_the_weights(tiny_model_path: Path) -> None:
    fakes = FakePolicy(), FakePolicy()
    async with make_world(tiny_model_path, *fakes) as world:
        push = await world.push(1)
        digest = world.pushes.weights_digest
        assert digest == model_manifest(world.model.module).digest
        assert [(fake.version, fake.digest) for fake in fakes] == [(1, digest)] * 2
        assert push.pause_seconds == 0.25


async def test_changed_weights_arrive_as_a_patch(tiny_model_path: Path) -> None:
    fake = FakePolicy()
    fake.takes_patches = True
    async with make_world(tiny_model_path, fake) as world:
        full = await world.push(1)
        with torch.no_grad():
            next(world.model.module.parameters())[0, 0] += 1.0
        patch = await world.push(2)
        assert (fake.version, fake.digest) == (2, model_manifest(world.model.module).digest)
        assert fake.pushes == ["full", "patch"]
        # One frame of one float32: 4 bytes of gap and 4 of step, in zstd's own few.
        assert patch.num_bytes < 40 < full.num_bytes
        num_elements = sum(tensor.numel() for _, tensor in world.model.weights())
        assert patch.changed_fraction == pytest.approx(1 / num_elements)


async def test_a_service_of_another_dtype_is_refused_before_the_bytes_travel(tiny_model_path: Path) -> None:
    fake = FakePolicy(dtype="BF16")
    async with make_world(tiny_model_path, fake) as world:
        with pytest.raises(ConfigError, match=r"policy service at .* serves BF16, the trainer has F32"):
            await world.push(1)
        assert not fake.arriving.is_set()


async def test_a_lone_service_that_answers_with_other_weights_ends_the_run(tiny_model_path: Path) -> None:
    class Liar(FakePolicy):
        async def UpdateWeights(self, request_iterator, context):  # type: ignore[no-untyped-def]
            response = await super().UpdateWeights(request_iterator, context)
            response.weights_digest = "something-else"
            return response

    async with make_world(tiny_model_path, Liar()) as world:
        with pytest.raises(RunError, match=r"answered a push of version 1 .* it does not serve what was pushed"):
            await world.push(1)


async def test_adapters_are_merged_once_for_all_services(
    tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes = FakePolicy(), FakePolicy()
    async with make_world(tiny_model_path, *fakes, lora=LoraConfig(rank=2, alpha=4)) as world:
        weights, calls = world.model.weights, []
        monkeypatch.setattr(world.model, "weights", lambda: calls.append(1) or weights())
        await world.push(1)
        assert [(fake.version, fake.digest) for fake in fakes] == [(1, world.pushes.weights_digest)] * 2
        assert len(calls) == 1


async def test_another_rank_pushes_nothing_and_knows_what_the_main_one_does(tiny_model_path: Path) -> None:
    fake = FakePolicy()
    digest = model_manifest(load_policy(tiny_model_path, dtype="float32")).digest
    async with make_world(tiny_model_path, fake, ranks=OtherRank(rank=1, digest=digest)) as world:
        push = await world.push(1)
        assert (world.pushes.weights_digest, push.num_bytes) == (digest, 0)
        assert not fake.arriving.is_set()


@dataclass(frozen=True)
class OtherRank(Ranks):
    """The second rank, in a world where nothing has to be summed."""

    digest: str = ""

    def gather_bytes(self, data: bytes) -> list[bytes]:
        return [self.digest.encode(), data]
