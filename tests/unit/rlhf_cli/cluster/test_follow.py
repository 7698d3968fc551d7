"""A run that is followed: why it waits, its log, its end."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rlhf_cli.cluster.connection import connect
from rlhf_cli.cluster.diagnosis import RunState
from rlhf_cli.cluster.follow import Follower
from rlhf_cli.errors import ClusterError
from tests.support.cluster_world import World, cluster_world, unreachable


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with cluster_world(tmp_path) as world:
        yield world


def follow(world: World, *meanwhile: Callable[[], None]) -> tuple[RunState, list[str], list[str]]:
    """How a run ended, its log and what was noted, with what happens before each look."""
    lines: list[str] = []
    notes: list[str] = []
    world.api.on_look = list(meanwhile)
    cluster = connect(kubeconfig=world.kubeconfig)
    follower = Follower(cluster, "first", show_line=lines.append, note=notes.append, poll_seconds=0)
    return follower.follow(), lines, notes


def stamped(*seconds: int) -> list[str]:
    """Log lines, one a second."""
    return [f"2026-05-01T10:00:{second:02}.123456789Z step {second}" for second in seconds]


def test_following_shows_reasons_then_each_log_line_once_then_the_end(world: World) -> None:
    world.submit()
    log = world.api.logs

    def starts() -> None:
        world.pod("run-first-x", {"running": {}})
        log["run-first-x", "trainer"] = stamped(1, 2)

    def ends() -> None:
        world.pod("run-first-x", {"terminated": {"exitCode": 0}}, "Succeeded")
        log["run-first-x", "trainer"] = stamped(1, 2, 3)
        world.end("Complete")

    state, lines, notes = follow(
        world,
        lambda: world.pod("run-first-x", {"waiting": {"reason": "ErrImageNeverPull"}}, "Pending"),
        lambda: None,
        starts,
        ends,
    )
    assert state == "finished"
    assert lines == ["step 1", "step 2", "step 3"]
    assert [note.split(":")[0] for note in notes] == [
        "run first is pending",
        "container trainer of pod run-first-x",
        "run first is running",
        "run first is finished",
    ]
    assert any("sinceTime=2026-05-01T10%3A00%3A01Z" in request for request in world.api.requests)


def test_following_goes_on_with_the_pod_that_takes_a_failed_ones_place(world: World) -> None:
    world.submit()

    def fails() -> None:
        world.pod("run-first-x", {"terminated": {"exitCode": 1}}, "Failed")
        world.api.logs["run-first-x", "trainer"] = stamped(1)

    def again() -> None:
        world.pod("run-first-y", {"terminated": {"exitCode": 1}}, "Failed")
        world.api.logs["run-first-y", "trainer"] = stamped(2)
        world.end("Failed", "backoff limit")

    state, lines, notes = follow(world, fails, again)
    assert (state, lines) == ("failed", ["step 1", "step 2"])
    assert notes[-2:] == [
        "the Job failed: backoff limit",
        "container trainer of pod run-first-y ended with exit code 1",
    ]


def test_following_waits_for_a_cluster_that_is_away_and_gives_up_in_the_end(world: World) -> None:
    world.submit()
    notes: list[str] = []
    cluster = connect(kubeconfig=world.kubeconfig)
    options = {"show_line": notes.append, "note": notes.append, "poll_seconds": 0.05}
    away = connect(kubeconfig=unreachable(world))
    with pytest.raises(ClusterError, match="does not answer"):
        Follower(away, "first", **options, patience_seconds=0.2).follow()
    assert [note.rpartition("; ")[2] for note in notes] == ["trying again"]
    world.end("Complete")
    assert Follower(cluster, "first", **options, patience_seconds=0.2).follow() == "finished"


def test_following_shows_the_log_of_an_init_container_that_fails(world: World) -> None:
    world.submit()

    def fails() -> None:
        world.pod("run-first-x", {"waiting": {"reason": "PodInitializing"}}, "Failed")
        status = world.api.objects["pods", "run-first-x"]["status"]
        status["initContainerStatuses"] = [{"name": "fetch", "state": {"terminated": {"exitCode": 1}}}]
        world.api.logs["run-first-x", "fetch"] = ["no such model"]
        world.end("Failed")

    _, _, notes = follow(world, fails)
    assert notes[-1] == "init container fetch of pod run-first-x ended with exit code 1\n  no such model"
