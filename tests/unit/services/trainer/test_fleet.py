"""The fleet brings every replica to the published weights, and does without those that it cannot."""

import asyncio

import grpc
import pytest

from rlhf.errors import ConfigError, InvalidRequestError, RunError
from rlhf.learning.ranks import Ranks
from tests.support.fake_services import FakePolicy
from tests.support.fleet_world import make_fleet, make_snapshot

FULL_BYTES = 4000
"""1000 float32 numbers."""


async def test_a_snapshot_reaches_every_replica() -> None:
    fakes = FakePolicy(), FakePolicy()
    async with make_fleet(*fakes) as world:
        snapshot = make_snapshot(1)
        push = await world.fleet.push(snapshot)
        assert [(fake.version, fake.digest) for fake in fakes] == [(1, snapshot.digest)] * 2
        assert (push.num_bytes, push.pause_seconds) == (2 * FULL_BYTES, 0.25)
        assert push.changed_fraction is None
        assert len(world.fleet.ready()) == 2
        assert world.reports == []


async def test_a_replica_that_takes_patches_gets_what_changed() -> None:
    fakes = FakePolicy(), FakePolicy()
    fakes[0].takes_patches = True
    async with make_fleet(*fakes) as world:
        first = make_snapshot(1)
        second = make_snapshot(2, first)
        await world.fleet.push(first)
        push = await world.fleet.push(second)
        assert [fake.pushes for fake in fakes] == [["full", "patch"], ["full", "full"]]
        assert second.patch is not None
        assert push.num_bytes == FULL_BYTES + second.patch.num_bytes
        assert push.changed_fraction == 0.001  # one number of 1000


async def test_push_encoding_full_sends_all_even_where_a_patch_would_do() -> None:
    fake = FakePolicy()
    fake.takes_patches = True
    async with make_fleet(fake, push_encoding="full") as world:
        first = make_snapshot(1)
        await world.fleet.push(first)
        await world.fleet.push(make_snapshot(2, first))
        assert fake.pushes == ["full", "full"]


async def test_a_replica_that_lost_the_base_of_a_patch_gets_all_weights() -> None:
    class Forgetful(FakePolicy):
        """Is started anew as soon as it has said what it serves, once."""

        forgets = False

        async def GetModel(self, request, context):  # type: ignore[no-untyped-def]
            model = await super().GetModel(request, context)
            if self.forgets:
                self.forgets = False
                self.restart()
            return model

    fake = Forgetful()
    fake.takes_patches = True
    async with make_fleet(fake) as world:
        first = make_snapshot(1)
        await world.fleet.push(first)
        fake.forgets = True
        await world.fleet.push(make_snapshot(2, first))
        assert (fake.pushes, fake.version) == (["full", "full"], 2)
        assert world.reports == []


async def test_a_replica_that_has_the_weights_is_left_alone() -> None:
    fake = FakePolicy()
    async with make_fleet(fake) as world:
        snapshot = make_snapshot(1)
        fake.digest = snapshot.digest
        await world.fleet.push(snapshot)  # the same weights under version 0: the version must move
        await world.fleet.push(snapshot)
        assert fake.pushed_versions == [1]


async def test_a_push_that_is_not_done_by_its_deadline_sets_the_replica_aside_until_the_next() -> None:
    fakes = FakePolicy(), FakePolicy()
    async with make_fleet(*fakes, push_deadline_seconds=0.5) as world:
        fakes[0].hold_push = asyncio.Event()
        await world.fleet.push(make_snapshot(1))
        assert world.states == ["set_aside", "ready"]
        assert world.reports == [
            f"policy service at {fakes[0].target} did not have version 1 within services.push_deadline_seconds (0.5); "
            "it is set aside; going on with 1 other"
        ]
        fakes[0].hold_push = None
        await world.fleet.push(make_snapshot(2))
        await world.until(lambda: world.states == ["ready", "ready"])
        assert [fake.version for fake in fakes] == [2, 2]


async def test_a_replica_that_refuses_the_weights_is_set_aside() -> None:
    fakes = FakePolicy(), FakePolicy()
    async with make_fleet(*fakes) as world:
        fakes[0].refusal = (grpc.StatusCode.INVALID_ARGUMENT, "tensors lacks 'lm_head.weight'")
        await world.fleet.push(make_snapshot(1))
        assert world.states == ["set_aside", "ready"]
        assert world.metric("rlhf_trainer_replicas", state="set_aside") == 1


async def test_if_all_refuse_the_weights_the_first_refusal_comes_out() -> None:
    fake = FakePolicy()
    async with make_fleet(fake) as world:
        fake.refusal = (grpc.StatusCode.INVALID_ARGUMENT, "tensors lacks 'lm_head.weight'")
        with pytest.raises(InvalidRequestError, match=r"tensors lacks 'lm_head.weight'"):
            await world.fleet.push(make_snapshot(1))


async def test_a_replica_that_answers_with_other_weights_is_set_aside() -> None:
    class Liar(FakePolicy):
        async def UpdateWeights(self, request_iterator, context):  # type: ignore[no-untyped-def]
            response = await super().UpdateWeights(request_iterator, context)
            response.weights_digest = "something-else"
            return response

    liar, honest = Liar(), FakePolicy()
    async with make_fleet(liar, honest) as world:
        await world.fleet.push(make_snapshot(1))
        assert world.states == ["set_aside", "ready"]
        assert isinstance(world.replica(0).error, RunError)
        assert "it does not serve what was pushed" in world.reports[0]


async def test_a_push_that_another_one_is_in_the_way_of_is_made_again() -> None:
    fake = FakePolicy()
    async with make_fleet(fake) as world:
        fake.refusal = (grpc.StatusCode.RESOURCE_EXHAUSTED, "another push is under way")
        pushing = asyncio.create_task(world.fleet.push(make_snapshot(1)))
        await fake.arriving.wait()
        fake.refusal = None
        await pushing
        assert fake.version == 1


async def test_a_replica_of_another_tokenizer_is_an_error_at_the_start() -> None:
    with pytest.raises(ConfigError, match=r"policy service at .* has tokenizer other, the trained policy has"):
        async with make_fleet(FakePolicy(), FakePolicy(tokenizer="other")):
            pass


async def test_a_replica_of_another_type_is_an_error_at_the_first_push() -> None:
    async with make_fleet(FakePolicy(), FakePolicy(dtype="BF16")) as world:
        with pytest.raises(ConfigError, match=r"policy service at .* serves BF16, the trainer has F32"):
            await world.fleet.push(make_snapshot(1))
        assert world.fakes[1].pushes == []


async def test_a_replica_of_another_model_that_comes_later_is_set_aside() -> None:
    fakes = FakePolicy(), FakePolicy()
    async with make_fleet(*fakes) as world:
        await world.fleet.push(make_snapshot(1))
        await fakes[1].kill()
        await world.until(lambda: world.states == ["ready", "away"])
        fakes[1].tokenizer = "other"
        await fakes[1].start()
        await world.until(lambda: world.states == ["ready", "set_aside"])
        await world.fleet.push(make_snapshot(2))
        assert [fake.version for fake in fakes] == [2, 1]
        assert sum("has tokenizer other" in report for report in world.reports) == 1


@pytest.mark.parametrize("takes_patches", [False, True])
async def test_along_a_chain_the_trainer_sends_once(takes_patches: bool) -> None:
    fakes = [FakePolicy() for _ in range(4)]
    for fake in fakes:
        fake.takes_patches = takes_patches
    async with make_fleet(*fakes, push="relay") as world:
        first = make_snapshot(1)
        push = await world.fleet.push(first)
        assert push.num_bytes == FULL_BYTES
        second = make_snapshot(2, first)
        push = await world.fleet.push(second)
        assert second.patch is not None
        assert push.num_bytes == (second.patch.num_bytes if takes_patches else FULL_BYTES)
        assert {fake.digest for fake in fakes} == {second.digest}
        assert {tuple(fake.pushes) for fake in fakes} == {("full", "patch" if takes_patches else "full")}


@pytest.mark.parametrize("position", [0, 1, 2])
async def test_a_dead_replica_of_a_chain_is_left_out(position: int) -> None:
    fakes = [FakePolicy() for _ in range(3)]
    async with make_fleet(*fakes, push="relay", replica_probe_seconds=30) as world:
        await fakes[position].kill()
        await world.fleet.push(make_snapshot(1))
        assert len(world.fleet.ready()) == 2
        assert world.states[position] == "away"
        assert [fake.version for fake in fakes] == [int(index != position) for index in range(3)]


async def test_another_rank_waits_until_the_main_one_has_pushed() -> None:
    fake = FakePolicy()
    async with make_fleet(fake, ranks=Ranks(1, 2)) as world:
        snapshot = make_snapshot(1)
        await world.fleet.push(snapshot)
        waiting = asyncio.create_task(world.fleet.wait_ready())
        await asyncio.sleep(0.2)
        assert not waiting.done()
        assert "the main rank has not brought it to version 1" in world.replica(0).reason
        fake.version, fake.digest = 1, snapshot.digest
        await waiting
        assert fake.pushes == []
