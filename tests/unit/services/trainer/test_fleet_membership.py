"""Replicas join, restart, hang, die and leave; while all are away the fleet waits."""

import asyncio
from pathlib import Path

import pytest

from rlhf.errors import NotReadyError
from tests.support.fake_services import FakePolicy
from tests.support.fleet_world import make_fleet, make_snapshot


async def test_a_restarted_replica_is_brought_current_before_it_is_ready() -> None:
    fakes = FakePolicy(), FakePolicy()
    async with make_fleet(*fakes) as world:
        await world.fleet.push(make_snapshot(1))
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
        await world.fleet.push(make_snapshot(1))
        fake.restart()
        await world.until(lambda: fake.version == 1)
        assert fake.pushed_versions == [1, 1]


async def test_a_replica_that_joins_is_brought_current_before_it_is_ready(tmp_path: Path) -> None:
    list_of_replicas = tmp_path / "replicas"
    async with FakePolicy() as first, FakePolicy() as second:
        list_of_replicas.write_text(f"{first.target}\n")
        async with make_fleet(policy_targets=[f"file://{list_of_replicas}"]) as world:
            await world.fleet.push(make_snapshot(1))
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
        pushing = asyncio.create_task(world.fleet.push(make_snapshot(1)))
        await fakes[0].arriving.wait()
        fakes[0].runs.clear()
        await pushing
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
        pushing = asyncio.create_task(world.fleet.push(make_snapshot(1)))
        await fakes[0].arriving.wait()
        await fakes[0].kill()
        await pushing
        assert world.states == ["away", "ready"]
        fakes[0].hold_push = None
        await fakes[0].start()
        await world.until(lambda: len(world.fleet.ready()) == 2)
        assert fakes[0].version == 1


async def test_a_run_begins_with_the_replicas_that_there_are() -> None:
    absent = FakePolicy()
    async with absent:
        target = absent.target
    async with FakePolicy() as fake, make_fleet(policy_targets=[fake.target, target]) as world:
        assert [replica.target for replica in world.fleet.ready()] == [fake.target]


async def test_while_all_are_away_the_fleet_waits_and_says_so_once() -> None:
    fake = FakePolicy()
    async with make_fleet(fake) as world:
        await world.fleet.push(make_snapshot(1))
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
        await world.fleet.push(make_snapshot(1))
        fake.restart()
        world.fleet.stale(world.replica(0))
        assert world.fleet.ready() == []
        await world.fleet.wait_ready()
        assert fake.pushed_versions == [1, 1]
