"""The fleet brings every replica to the published weights, and does without those that it cannot."""

import asyncio
from pathlib import Path

import grpc
import pytest
from fake_services import FakePolicy
from fleet_world import make_fleet, make_snapshot

from rlhf_services.common.errors import ConfigError, InvalidRequestError, NotReadyError
from rlhf_services.trainer.errors import RunError
from rlhf_services.trainer.learning.ranks import Ranks

FULL_BYTES = 4000
"""1000 float32 numbers."""


async def test_a_snapshot_reaches_every_replica() -> None:
    fakes = FakePolicy(), FakePolicy()
    async with make_fleet(*fakes) as world:
        snapshot = make_snapshot(1)
        publication = await world.fleet.publish(snapshot)
        assert [(fake.version, fake.digest) for fake in fakes] == [(1, snapshot.digest)] * 2
        assert (publication.num_bytes, publication.pause_seconds) == (2 * FULL_BYTES, 0.25)
        assert publication.changed_fraction is None
        assert len(world.fleet.ready()) == 2
        assert world.reports == []


async def test_a_replica_that_takes_patches_gets_what_changed() -> None:
    fakes = FakePolicy(), FakePolicy()
    fakes[0].takes_patches = True
    async with make_fleet(*fakes) as world:
        first = make_snapshot(1)
        second = make_snapshot(2, first)
        await world.fleet.publish(first)
        publication = await world.fleet.publish(second)
        assert [fake.pushes for fake in fakes] == [["full", "patch"], ["full", "full"]]
        assert second.patch is not None
        assert publication.num_bytes == FULL_BYTES + second.patch.num_bytes
        assert publication.changed_fraction == 0.001  # one number of 1000


async def test_push_encoding_full_sends_all_even_where_a_patch_would_do() -> None:
    fake = FakePolicy()
    fake.takes_patches = True
    async with make_fleet(fake, push_encoding="full") as world:
        first = make_snapshot(1)
        await world.fleet.publish(first)
        await world.fleet.publish(make_snapshot(2, first))
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
        await world.fleet.publish(first)
        fake.forgets = True
        await world.fleet.publish(make_snapshot(2, first))
        assert (fake.pushes, fake.version) == (["full", "full"], 2)
        assert world.reports == []


async def test_a_replica_that_has_the_weights_is_left_alone() -> None:
    fake = FakePolicy()
    async with make_fleet(fake) as world:
        snapshot = make_snapshot(1)
        fake.digest = snapshot.digest
        await world.fleet.publish(snapshot)  # the same weights under version 0: the version must move
        await world.fleet.publish(snapshot)
        assert fake.pushed_versions == [1]


async def test_a_restarted_replica_is_brought_current_before_it_is_ready() -> None:
    fakes = FakePolicy(), FakePolicy()
    async with make_fleet(*fakes) as world:
        await world.fleet.publish(make_snapshot(1))
        await fakes[0].kill()
        await world.until(lambda: world.states == ["away", "ready"])
        assert world.reports[0].startswith(f"policy service at {fakes[0].target}: ")
        assert world.reports[0].endswith("; going on with 1 other")
        fakes[0].restart()
        await fakes[0].start()
        await world.until(lambda: world.states == ["ready", "ready"])
        assert fakes[0].pushed_versions == [1, 1]
        assert world.reports[1:] == [f"policy service at {fakes[0].target} is back"]


async def test_a_replica_that_restarts_between_two_looks_is_found_out() -> None:
    fake = FakePolicy()
    async with make_fleet(fake) as world:
        await world.fleet.publish(make_snapshot(1))
        fake.restart()
        await world.until(lambda: fake.version == 1)
        assert fake.pushed_versions == [1, 1]


async def test_a_replica_that_joins_is_brought_current_before_it_is_ready(tmp_path: Path) -> None:
    list_of_replicas = tmp_path / "replicas"
    async with FakePolicy() as first, FakePolicy() as second:
        list_of_replicas.write_text(f"{first.target}\n")
        async with make_fleet(policy_targets=[f"file://{list_of_replicas}"]) as world:
            await world.fleet.publish(make_snapshot(1))
            list_of_replicas.write_text(f"{first.target}\n{second.target}\n")
            await world.until(lambda: len(world.fleet.ready()) == 2)
            assert second.pushed_versions == [1]
            list_of_replicas.write_text(f"{second.target}\n")
            await world.until(lambda: len(world.fleet.replicas) == 1)
            assert [replica.target for replica in world.fleet.ready()] == [second.target]
            assert world.reports == [
                f"policy service at {second.target} has joined",
                f"policy service at {first.target} has left",
            ]
            gone = {"replica": first.target}
            assert world.metric("rlhf_trainer_replica_version", **gone) is None
            assert world.metric("rlhf_trainer_push_bytes_total", encoding="full", **gone) is None


async def test_a_replica_that_left_may_end_its_calls(tmp_path: Path) -> None:
    list_of_replicas = tmp_path / "replicas"
    async with FakePolicy() as first, FakePolicy() as second:
        list_of_replicas.write_text(f"{first.target}\n{second.target}\n")
        async with make_fleet(policy_targets=[f"file://{list_of_replicas}"]) as world:
            await world.until(lambda: len(world.fleet.ready()) == 2)
            leaver = world.fleet.replicas[first.target]
            leaver.outstanding = 1
            list_of_replicas.write_text(f"{second.target}\n")
            await world.until(lambda: len(world.fleet.replicas) == 1)
            await asyncio.sleep(0.3)  # some looks
            assert not leaver.lost.is_set()
            leaver.outstanding = 0
            async with asyncio.timeout(5):
                await leaver.lost.wait()


async def test_a_replica_that_hangs_is_away_and_its_calls_are_given_up() -> None:
    fakes = FakePolicy(), FakePolicy()
    async with make_fleet(*fakes) as world:
        lost = world.replica(0).lost
        fakes[0].runs.clear()
        await world.until(lambda: world.states == ["away", "ready"])
        assert lost.is_set()
        assert "does not answer health checks for 0.5 s" in world.reports[0]
        fakes[0].runs.set()
        await world.until(lambda: world.states == ["ready", "ready"])
        assert not world.replica(0).lost.is_set()


async def test_a_replica_that_hangs_in_a_push_is_left_behind() -> None:
    fakes = FakePolicy(), FakePolicy()
    async with make_fleet(*fakes) as world:
        fakes[0].hold_push = asyncio.Event()
        publishing = asyncio.create_task(world.fleet.publish(make_snapshot(1)))
        await fakes[0].arriving.wait()
        fakes[0].runs.clear()
        await publishing
        assert world.states == ["away", "ready"]
        assert [fake.version for fake in fakes] == [0, 1]
        fakes[0].hold_push = None
        fakes[0].runs.set()
        await world.until(lambda: len(world.fleet.ready()) == 2)
        assert fakes[0].version == 1
        assert world.metric("rlhf_trainer_push_failures_total", replica=fakes[0].target) == 1


async def test_a_replica_that_dies_in_a_push_is_left_behind() -> None:
    fakes = FakePolicy(), FakePolicy()
    async with make_fleet(*fakes) as world:
        fakes[0].hold_push = asyncio.Event()
        publishing = asyncio.create_task(world.fleet.publish(make_snapshot(1)))
        await fakes[0].arriving.wait()
        await fakes[0].kill()
        await publishing
        assert world.states == ["away", "ready"]
        fakes[0].hold_push = None
        await fakes[0].start()
        await world.until(lambda: len(world.fleet.ready()) == 2)
        assert fakes[0].version == 1


async def test_a_push_that_is_not_done_by_its_deadline_sets_the_replica_aside_until_the_next() -> None:
    fakes = FakePolicy(), FakePolicy()
    async with make_fleet(*fakes, push_deadline_seconds=0.5) as world:
        fakes[0].hold_push = asyncio.Event()
        await world.fleet.publish(make_snapshot(1))
        assert world.states == ["set_aside", "ready"]
        assert world.reports == [
            f"policy service at {fakes[0].target} did not have version 1 within services.push_deadline_seconds (0.5); "
            "it is set aside; going on with 1 other"
        ]
        fakes[0].hold_push = None
        await world.fleet.publish(make_snapshot(2))
        await world.until(lambda: world.states == ["ready", "ready"])
        assert [fake.version for fake in fakes] == [2, 2]


async def test_a_replica_that_refuses_the_weights_is_set_aside() -> None:
    fakes = FakePolicy(), FakePolicy()
    async with make_fleet(*fakes) as world:
        fakes[0].refusal = (grpc.StatusCode.INVALID_ARGUMENT, "tensors lacks 'lm_head.weight'")
        await world.fleet.publish(make_snapshot(1))
        assert world.states == ["set_aside", "ready"]
        assert world.metric("rlhf_trainer_replicas", state="set_aside") == 1


async def test_if_all_refuse_the_weights_the_first_refusal_comes_out() -> None:
    fake = FakePolicy()
    async with make_fleet(fake) as world:
        fake.refusal = (grpc.StatusCode.INVALID_ARGUMENT, "tensors lacks 'lm_head.weight'")
        with pytest.raises(InvalidRequestError, match=r"tensors lacks 'lm_head.weight'"):
            await world.fleet.publish(make_snapshot(1))


async def test_a_replica_that_answers_with_other_weights_is_set_aside() -> None:
    class Liar(FakePolicy):
        async def UpdateWeights(self, request_iterator, context):  # type: ignore[no-untyped-def]
            response = await super().UpdateWeights(request_iterator, context)
            response.weights_digest = "something-else"
            return response

    liar, honest = Liar(), FakePolicy()
    async with make_fleet(liar, honest) as world:
        await world.fleet.publish(make_snapshot(1))
        assert world.states == ["set_aside", "ready"]
        assert isinstance(world.replica(0).error, RunError)
        assert "it does not serve what was pushed" in world.reports[0]


async def test_a_push_that_another_one_is_in_the_way_of_is_made_again() -> None:
    fake = FakePolicy()
    async with make_fleet(fake) as world:
        fake.refusal = (grpc.StatusCode.RESOURCE_EXHAUSTED, "another push is under way")
        publishing = asyncio.create_task(world.fleet.publish(make_snapshot(1)))
        await fake.arriving.wait()
        fake.refusal = None
        await publishing
        assert fake.version == 1


async def test_a_replica_of_another_tokenizer_is_an_error_at_the_start() -> None:
    with pytest.raises(ConfigError, match=r"policy service at .* has tokenizer other, the trained policy has"):
        async with make_fleet(FakePolicy(), FakePolicy(tokenizer="other")):
            pass


async def test_a_replica_of_another_type_is_an_error_at_the_first_push() -> None:
    async with make_fleet(FakePolicy(), FakePolicy(dtype="BF16")) as world:
        with pytest.raises(ConfigError, match=r"policy service at .* serves BF16, the trainer has F32"):
            await world.fleet.publish(make_snapshot(1))
        assert world.fakes[1].pushes == []


async def test_a_replica_of_another_model_that_comes_later_is_set_aside() -> None:
    fakes = FakePolicy(), FakePolicy()
    async with make_fleet(*fakes) as world:
        await world.fleet.publish(make_snapshot(1))
        await fakes[1].kill()
        await world.until(lambda: world.states == ["ready", "away"])
        fakes[1].tokenizer = "other"
        await fakes[1].start()
        await world.until(lambda: world.states == ["ready", "set_aside"])
        await world.fleet.publish(make_snapshot(2))
        assert [fake.version for fake in fakes] == [2, 1]
        assert sum("has tokenizer other" in report for report in world.reports) == 1


async def test_a_run_begins_with_the_replicas_that_there_are() -> None:
    absent = FakePolicy()
    async with absent:
        target = absent.target
    async with FakePolicy() as fake, make_fleet(policy_targets=[fake.target, target]) as world:
        assert [replica.target for replica in world.fleet.ready()] == [fake.target]


async def test_while_all_are_away_the_fleet_waits_and_says_so_once() -> None:
    fake = FakePolicy()
    async with make_fleet(fake) as world:
        await world.fleet.publish(make_snapshot(1))
        await fake.kill()
        await world.until(lambda: world.states == ["away"])
        waiting = asyncio.create_task(world.fleet.wait_ready())
        await asyncio.sleep(0.1)
        assert world.fleet.waiting_for.startswith(f"policy service at {fake.target}: ")
        await fake.start()
        assert await waiting == [world.replica(0)]
        assert world.fleet.waiting_for == ""
        assert [report.rpartition("; ")[2] for report in world.reports] == [
            "waiting up to 10 s for it",
            f"policy service at {fake.target} is back",
        ]


async def test_when_the_patience_is_spent_the_reasons_come_out() -> None:
    fakes = FakePolicy(), FakePolicy()
    async with make_fleet(*fakes, wait_for_services_seconds=0.5) as world:
        for fake in fakes:
            await fake.kill()
        await world.until(lambda: world.states == ["away", "away"])
        with pytest.raises(
            NotReadyError, match="none of them came back in time: start it again, then continue"
        ) as spent:
            await world.fleet.wait_ready()
        assert all(fake.target in str(spent.value) for fake in fakes)


async def test_a_replica_that_looks_well_but_fails_every_call_spends_the_patience() -> None:
    async with make_fleet(FakePolicy(), wait_for_services_seconds=1.5) as world:

        async def fail_every_call() -> None:
            while True:
                (replica,) = await world.fleet.wait_ready()
                world.fleet.lost(replica, NotReadyError("the engine died"))

        with pytest.raises(NotReadyError, match="the engine died; it did not come back in time"):
            await asyncio.wait_for(fail_every_call(), 15)


async def test_a_replica_that_says_its_weights_are_old_is_brought_current() -> None:
    fake = FakePolicy()
    async with make_fleet(fake, replica_probe_seconds=30) as world:
        await world.fleet.publish(make_snapshot(1))
        fake.restart()
        world.fleet.stale(world.replica(0))
        assert world.fleet.ready() == []
        await world.fleet.wait_ready()
        assert fake.pushed_versions == [1, 1]


@pytest.mark.parametrize("takes_patches", [False, True])
async def test_along_a_chain_the_trainer_sends_once(takes_patches: bool) -> None:
    fakes = [FakePolicy() for _ in range(4)]
    for fake in fakes:
        fake.takes_patches = takes_patches
    async with make_fleet(*fakes, push="chain") as world:
        first = make_snapshot(1)
        publication = await world.fleet.publish(first)
        assert publication.num_bytes == FULL_BYTES
        second = make_snapshot(2, first)
        publication = await world.fleet.publish(second)
        assert second.patch is not None
        assert publication.num_bytes == (second.patch.num_bytes if takes_patches else FULL_BYTES)
        assert {fake.digest for fake in fakes} == {second.digest}
        assert {tuple(fake.pushes) for fake in fakes} == {("full", "patch" if takes_patches else "full")}


@pytest.mark.parametrize("position", [0, 1, 2])
async def test_a_dead_replica_of_a_chain_is_left_out(position: int) -> None:
    fakes = [FakePolicy() for _ in range(3)]
    async with make_fleet(*fakes, push="chain", replica_probe_seconds=30) as world:
        await fakes[position].kill()
        await world.fleet.publish(make_snapshot(1))
        assert len(world.fleet.ready()) == 2
        assert world.states[position] == "away"
        assert [fake.version for fake in fakes] == [int(index != position) for index in range(3)]


async def test_another_rank_waits_until_the_main_one_has_pushed() -> None:
    fake = FakePolicy()
    async with make_fleet(fake, ranks=Ranks(1, 2)) as world:
        snapshot = make_snapshot(1)
        await world.fleet.publish(snapshot)
        waiting = asyncio.create_task(world.fleet.wait_ready())
        await asyncio.sleep(0.2)
        assert not waiting.done()
        assert "the main rank has not brought it to version 1" in world.replica(0).reason
        fake.version, fake.digest = 1, snapshot.digest
        await waiting
        assert fake.pushes == []
