"""Pushing weights, and knowing that they arrived."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from fake_services import TOKENIZER, FakePolicy

from rlhf_services.common.errors import ConfigError, NotReadyError
from rlhf_services.models.loading import load_policy
from rlhf_services.models.weights import model_manifest
from rlhf_services.trainer.config import LoraConfig, OptimizerConfig, ServicesConfig
from rlhf_services.trainer.errors import RunError
from rlhf_services.trainer.fleet.peers import Peers
from rlhf_services.trainer.fleet.publish import Publisher
from rlhf_services.trainer.learning.ranks import Ranks
from rlhf_services.trainer.learning.trained_model import TrainedModel


@asynccontextmanager
async def make_publisher(path: Path, *fakes: FakePolicy, lora: LoraConfig | None = None) -> AsyncIterator[Publisher]:
    async with AsyncExitStack() as stack:
        for fake in fakes:
            await stack.enter_async_context(fake)
        config = ServicesConfig(policy_targets=[fake.target for fake in fakes], wait_for_services_seconds=20)
        peers = await stack.enter_async_context(Peers(config, tokenizer_digest=TOKENIZER, report=print))
        model = TrainedModel("policy", load_policy(path, dtype="float32"), OptimizerConfig(), total_steps=1, lora=lora)
        yield Publisher(model, peers, policy_version=0)


async def test_every_policy_service_gets_the_weights(tiny_model_path: Path) -> None:
    fakes = FakePolicy(), FakePolicy()
    async with make_publisher(tiny_model_path, *fakes) as publisher:
        await publisher.publish(1)
        assert [(fake.version, fake.digest) for fake in fakes] == [(1, publisher.weights_digest)] * 2
        assert publisher.pause_seconds == 0.25


async def test_a_service_that_has_the_weights_is_left_alone(tiny_model_path: Path) -> None:
    fake = FakePolicy()
    async with make_publisher(tiny_model_path, fake) as publisher:
        fake.digest = model_manifest(load_policy(tiny_model_path, dtype="float32")).digest
        await publisher.publish(1)  # the same weights under version 0: the version must move
        await publisher.publish(1)
        assert fake.pushed_versions == [1]


async def test_changed_weights_have_another_digest(tiny_model_path: Path) -> None:
    fake = FakePolicy()
    async with make_publisher(tiny_model_path, fake) as publisher:
        await publisher.publish(1)
        before = fake.digest
        with torch.no_grad():
            next(publisher._model.module.parameters()).add_(1.0)
        await publisher.publish(2)
        assert (fake.version, fake.digest == before) == (2, False)


async def test_a_service_of_another_dtype_is_refused_before_the_bytes_travel(tiny_model_path: Path) -> None:
    fake = FakePolicy(dtype="BF16")
    async with make_publisher(tiny_model_path, fake) as publisher:
        with pytest.raises(ConfigError, match=r"policy service at .* serves BF16, the trainer has F32"):
            await publisher.publish(1)
        assert fake.pushed_versions == []


async def test_a_service_that_answers_with_other_weights_ends_the_run(tiny_model_path: Path) -> None:
    class Liar(FakePolicy):
        async def UpdateWeights(self, request_iterator, context):  # type: ignore[no-untyped-def]
            response = await super().UpdateWeights(request_iterator, context)
            response.weights_digest = "something-else"
            return response

    async with make_publisher(tiny_model_path, Liar()) as publisher:
        with pytest.raises(RunError, match=r"answered a push of version 1 .* it does not serve what was pushed"):
            await publisher.publish(1)


async def test_on_one_rank_the_weights_are_read_where_they_are(tiny_model_path: Path) -> None:
    async with make_publisher(tiny_model_path, FakePolicy()) as publisher:
        own = {parameter.data_ptr() for parameter in publisher._model.module.parameters()}
        assert {tensor.data_ptr() for _, tensor in publisher._model.weights()} == own
        await publisher.publish(1)
        assert publisher._gathered == []


async def test_adapters_are_merged_once_for_all_services(
    tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes = FakePolicy(), FakePolicy()
    async with make_publisher(tiny_model_path, *fakes, lora=LoraConfig(rank=2, alpha=4)) as publisher:
        weights, calls = publisher._model.weights, []
        monkeypatch.setattr(publisher._model, "weights", lambda: calls.append(1) or weights())
        await publisher.publish(1)
        assert [(fake.version, fake.digest) for fake in fakes] == [(1, publisher.weights_digest)] * 2
        assert len(calls) == 1


async def test_another_rank_waits_until_the_main_one_has_pushed(tiny_model_path: Path) -> None:
    fake = FakePolicy()
    async with make_publisher(tiny_model_path, fake) as publisher:
        (policy,) = publisher._peers.policies
        model = publisher._model
        # As on the second of two ranks, which got the digest from the main one.
        model.ranks = OtherRank(rank=1, digest=model_manifest(load_policy(tiny_model_path, dtype="float32")).digest)
        await publisher.publish(1)
        assert fake.pushed_versions == []
        waiting = asyncio.create_task(publisher.bring_current(policy))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        fake.version, fake.digest = 1, publisher.weights_digest
        await waiting
        publisher._peers.config = publisher._peers.config.model_copy(update={"wait_for_services_seconds": 0.01})
        fake.version = 0
        with pytest.raises(NotReadyError, match=r"serves version 0, and the main rank did not bring it to version 1"):
            await publisher.bring_current(policy)
        assert fake.pushed_versions == []


@dataclass(frozen=True)
class OtherRank(Ranks):
    """The second rank, in a world where nothing has to be summed."""

    digest: str = ""

    def gather_bytes(self, data: bytes) -> list[bytes]:
        return [self.digest.encode(), data]
