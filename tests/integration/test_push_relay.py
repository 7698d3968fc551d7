"""A push by relay, over real policy services: what becomes of every replica when some fail."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from rlhf.client.policy import PolicyClient
from rlhf.client.push import Outcome, push_to_all
from rlhf.client.rpc_errors import SilentError
from rlhf.errors import ServiceError
from rlhf.learning.snapshot import SparsePatch, WeightsSnapshot
from rlhf.models.loading import load_policy
from rlhf.models.sparse_patch import diff
from rlhf.weights import Encoding, PatchPart, PushResult, RelayedPush
from tests.integration.policy_pushing import Weights, changed, manifest_of, weights_of
from tests.integration.test_policy_service import Service, serving

DEADLINE_SECONDS = 30.0
PATIENCE_SECONDS = 0.5


def snapshot_of(version: int, weights: Weights, base: tuple[int, Weights] | None = None) -> WeightsSnapshot:
    manifest = manifest_of(weights)
    patch = None
    if base is not None:
        diffs = [diff(base[1][name], tensor) for name, tensor in weights.items()]
        patch = SparsePatch(
            base_policy_version=base[0],
            base_digest=manifest_of(base[1]).digest,
            parts=tuple(PatchPart(each.changed_count, len(each.frame)) for each in diffs),
            frames=tuple(each.frame for each in diffs if each.changed_count),
        )
    tensors = tuple(weights.values())
    return WeightsSnapshot(
        policy_version=version, manifest=manifest, digest=manifest.digest, tensors=tensors, patch=patch
    )


@pytest.fixture(scope="session")
def loaded(tiny_model_path: Path) -> Weights:
    """Version 0 of every service here."""
    return weights_of(load_policy(tiny_model_path, dtype="float32"))


@pytest.fixture(scope="session")
def first(loaded: Weights) -> Weights:
    return changed(loaded, 0.1, seed=1)


@asynccontextmanager
async def replicas(path: Path, number: int) -> AsyncIterator[list[Service]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(serving(path)) for _ in range(number)]


@asynccontextmanager
async def silent() -> AsyncIterator[PolicyClient]:
    """Something that accepts connections and never says a word."""
    hung = asyncio.Event()

    async def hang(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await hung.wait()
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    target = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with PolicyClient(target) as client:
        yield client
    hung.set()
    server.close()


def clients_of(services: list[Service]) -> list[PolicyClient]:
    return [service.client for service in services]


async def push(
    clients: list[PolicyClient],
    snapshot: WeightsSnapshot,
    encoding: Encoding = "full",
    deadline_seconds: float = DEADLINE_SECONDS,
    patience_seconds: float = PATIENCE_SECONDS,
) -> list[Outcome]:
    outcomes = await push_to_all(
        clients,
        snapshot.header(encoding),
        lambda: snapshot.payload(encoding),
        deadline_seconds=deadline_seconds,
        patience_seconds=patience_seconds,
    )
    assert list(outcomes) == [each.target for each in clients]
    return list(outcomes.values())


async def served_by(service: Service) -> tuple[int, str]:
    model = await service.client.get_model()
    return model.policy_version, model.weights_digest


async def test_all_replicas_serve_what_was_sent_once(tiny_model_path: Path, first: Weights):
    async with replicas(tiny_model_path, 3) as services:
        snapshot = snapshot_of(1, first)
        outcomes = await push(clients_of(services), snapshot)
        assert [type(outcome) for outcome in outcomes] == [PushResult, RelayedPush, RelayedPush]
        assert [await served_by(service) for service in services] == [(1, snapshot.digest)] * 3


async def test_a_patch_is_relayed_past_a_replica_on_another_base(
    tiny_model_path: Path, loaded: Weights, first: Weights
):
    async with replicas(tiny_model_path, 3) as services:
        other = snapshot_of(7, changed(loaded, 0.1, seed=9))
        await push(clients_of(services[1:2]), other)
        snapshot = snapshot_of(1, first, base=(0, loaded))
        outcomes = await push(clients_of(services), snapshot, encoding="sparse_patch")
        assert isinstance(outcomes[1], ServiceError)
        assert "this server is at version 7" in str(outcomes[1])
        served = [await served_by(service) for service in services]
        assert served == [(1, snapshot.digest), (7, other.digest), (1, snapshot.digest)]


async def test_a_silent_first_replica_is_left_out_and_the_next_one_takes_its_place(
    tiny_model_path: Path, first: Weights
):
    async with replicas(tiny_model_path, 2) as services, silent() as hung:
        outcomes = await push([hung, *clients_of(services)], snapshot_of(1, first))
        assert [type(outcome) for outcome in outcomes] == [SilentError, PushResult, RelayedPush]


async def test_behind_a_first_replica_that_has_the_weights_already_the_rest_is_served(
    tiny_model_path: Path, first: Weights
):
    async with replicas(tiny_model_path, 3) as services:
        snapshot = snapshot_of(1, first)
        await push(clients_of(services[:1]), snapshot)
        outcomes = await push(clients_of(services), snapshot)
        assert [type(outcome) for outcome in outcomes] == [PushResult, PushResult, RelayedPush]
        assert [await served_by(service) for service in services] == [(1, snapshot.digest)] * 3


async def test_when_the_time_is_over_the_rest_is_reported_without_being_asked(first: Weights):
    async with silent() as one, silent() as two:
        outcomes = await push([one, two], snapshot_of(1, first), deadline_seconds=0.2, patience_seconds=10.0)
        assert [type(outcome) for outcome in outcomes] == [SilentError, SilentError]
        assert "within the push's deadline" in str(outcomes[1])
