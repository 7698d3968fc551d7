"""`rlhf submit` and `rlhf runs` against a fake of the Kubernetes API."""

import copy
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_kubernetes import FakeKubernetes, fake_kubernetes

from rlhf_services.cli.main import main
from rlhf_services.cluster.connection import Place, connect
from rlhf_services.cluster.errors import ClusterError
from rlhf_services.cluster.follow import Follower
from rlhf_services.local.supervisor import free_ports

Capture = pytest.CaptureFixture[str]
TRAINER_YAML = Path(__file__).parents[3] / "deploy" / "k8s" / "base" / "trainer.yaml"
CONFIG = '[models]\npolicy_path = "/models/policy"\n[prompts]\npath = "prompts.jsonl"\n[critic]\nkind = "head"\n'
TEMPLATE: dict[str, Any] = {
    "kind": "PodTemplate",
    "metadata": {"name": "trainer"},
    "template": {"spec": {"containers": [{"name": "trainer", "image": "trainer:1"}]}},
}


class World:
    """A cluster with the PodTemplate, and a run's files."""

    def __init__(self, api: FakeKubernetes, kubeconfig: Path) -> None:
        self.api, self.kubeconfig, self.folder = api, kubeconfig, kubeconfig.parent
        (self.folder / "first.toml").write_text(CONFIG)
        (self.folder / "prompts.jsonl").write_text('{"prompt": "Hello"}\n')
        api.add(copy.deepcopy(TEMPLATE))

    def rlhf(self, *arguments: str) -> int:
        """Runs a command against the cluster; returns its exit code."""
        return main([*arguments, "--kubeconfig", str(self.kubeconfig)])

    def submit(self, *arguments: str) -> int:
        """Submits the run."""
        files = ("--config", f"{self.folder}/first.toml", "--file", f"{self.folder}/prompts.jsonl")
        return self.rlhf("submit", "ppo", *files, *arguments)

    def pod(self, name: str, state: dict[str, Any], phase: str = "Running", **status: Any) -> None:
        """Puts a pod of the run there, with the trainer in a state."""
        self.api.add(
            {
                "kind": "Pod",
                "metadata": {"name": name, "labels": {"rlhf-services/run": "first"}},
                "spec": {"containers": [{"name": "trainer"}], "nodeName": "node-7"},
                "status": {
                    "phase": phase,
                    "containerStatuses": [{"name": "trainer", "image": "trainer:1", "state": state, **status}],
                },
            }
        )

    def end(self, condition: str, message: str = "") -> None:
        """Lets the Job end."""
        self.api.objects["jobs", "run-first"]["status"] = {
            "conditions": [{"type": condition, "status": "True", "message": message}]
        }

    def kinds(self) -> set[str]:
        """What of the run is there."""
        return {kind for kind, name in self.api.objects if name == "run-first"}


def unreachable(world: World) -> Path:
    """A kubeconfig that leads nowhere."""
    text = yaml.safe_load(world.kubeconfig.read_text())
    text["clusters"][0]["cluster"]["server"] = f"http://127.0.0.1:{free_ports(1)[0]}"
    path = world.folder / "unreachable"
    path.write_text(yaml.safe_dump(text))
    return path


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with fake_kubernetes(tmp_path) as (api, kubeconfig):
        yield World(api, kubeconfig)


def test_submit_creates_the_objects_of_a_run(world: World, capsys: Capture) -> None:
    assert world.submit("--nodes", "2") == 0
    assert world.kinds() == {"configmaps", "services", "jobs"}
    assert world.api.objects["configmaps", "run-first"]["data"] == {
        "run.toml": CONFIG,
        "prompts.jsonl": '{"prompt": "Hello"}\n',
    }
    assert "run first is submitted to namespace rlhf" in capsys.readouterr().err


def test_a_second_run_of_one_name_is_refused_and_leaves_the_first_alone(world: World, capsys: Capture) -> None:
    assert world.submit() == 0
    assert world.submit() == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        "rlhf: run 'first' exists already; `rlhf runs resume first` goes on with it, `rlhf runs delete first` removes "
        "it, or take another --name"
    )
    assert world.kinds() == {"configmaps", "jobs"}


def test_what_was_created_is_taken_back_when_the_rest_is_refused(world: World, capsys: Capture) -> None:
    message = 'jobs.batch is forbidden: User "ann" cannot create resource "jobs" in API group "batch"'
    world.api.refusals["POST", "jobs"] = (403, message)
    assert world.submit() == 1
    assert capsys.readouterr().err == (
        f"rlhf: {message}; ask for the Role 'rlhf-submit' of deploy/k8s/base in this namespace\n"
    )
    assert world.kinds() == set()


def test_a_wrong_configuration_touches_no_cluster(world: World, capsys: Capture) -> None:
    (world.folder / "first.toml").write_text(CONFIG + "[training]\nstesp = 3\n")
    assert world.submit() == 2
    assert "unknown key 'training.stesp'; did you mean 'steps'?" in capsys.readouterr().err
    assert world.api.requests == []


def test_without_the_deployment_an_overlay_is_asked_for(world: World, capsys: Capture) -> None:
    world.api.objects.clear()
    assert world.submit("--namespace", "other") == 1
    assert "namespace other has no PodTemplate 'trainer'; apply an overlay first" in capsys.readouterr().err


def test_an_unreachable_cluster_a_missing_context_and_a_missing_file_are_sentences(
    world: World, capsys: Capture
) -> None:
    assert world.rlhf("runs", "list", "--context", "absent") == 1
    assert "rlhf: no cluster to talk to: " in capsys.readouterr().err
    assert main(["runs", "list", "--kubeconfig", str(world.folder / "absent")]) == 1
    assert "name one with --kubeconfig FILE or --context NAME" in capsys.readouterr().err
    assert main(["runs", "list", "--kubeconfig", str(unreachable(world))]) == 1
    message = capsys.readouterr().err
    assert re.match(
        r"rlhf: the cluster at http://127\.0\.0\.1:\d+ does not answer \(Failed to establish a new", message
    )
    assert message.count("\n") == 1


@pytest.mark.parametrize(
    ("status", "said"),
    [(401, "the cluster does not know who asks (no); log in"), (500, "the cluster answers 500: no")],
)
def test_other_refusals_are_sentences(world: World, capsys: Capture, status: int, said: str) -> None:
    world.api.refusals["GET", "jobs"] = (status, "no")
    assert world.rlhf("runs", "list") == 1
    assert f"rlhf: {said}" in capsys.readouterr().err


def test_the_contexts_namespace_is_taken_unless_another_is_named(world: World) -> None:
    text = yaml.safe_load(world.kubeconfig.read_text())
    text["contexts"][0]["context"]["namespace"] = "team-a"
    world.kubeconfig.write_text(yaml.safe_dump(text))
    assert connect(Place(kubeconfig=world.kubeconfig)).namespace == "team-a"
    assert connect(Place(kubeconfig=world.kubeconfig, namespace="team-b")).namespace == "team-b"


def test_a_dry_run_prints_what_would_be_created_and_creates_nothing(world: World, capsys: Capture) -> None:
    assert world.submit("--dry-run", "--image", "trainer:2") == 0
    config, job = yaml.safe_load_all(capsys.readouterr().out)
    assert config["data"]["run.toml"] == CONFIG
    assert job["spec"]["template"]["spec"]["containers"][0]["image"] == "trainer:2"
    assert world.kinds() == set()


def test_a_dry_run_with_a_template_needs_no_cluster(world: World, capsys: Capture) -> None:
    assert world.submit("--dry-run", "--template", str(TRAINER_YAML)) == 0
    assert [each["kind"] for each in yaml.safe_load_all(capsys.readouterr().out)] == ["ConfigMap", "Job"]
    assert world.api.requests == []


def test_flags_that_do_not_fit_together_exit_2(world: World, capsys: Capture) -> None:
    assert world.submit("--template", str(TRAINER_YAML)) == 2
    assert world.submit("--dry-run", "--follow") == 2
    assert world.submit("--dry-run", "--template", "absent.yaml") == 2
    assert "--template is 'absent.yaml': No such file or directory" in capsys.readouterr().err


def test_runs_are_listed_with_their_states(world: World, capsys: Capture) -> None:
    for name in ("first", "second", "third"):
        assert world.submit("--name", name) == 0
    world.pod("run-first-x", {"waiting": {"reason": "ErrImagePull", "message": "not found"}}, "Pending")
    world.api.objects["jobs", "run-second"]["status"] = {"conditions": [{"type": "Complete", "status": "True"}]}
    del world.api.objects["jobs", "run-third"]
    capsys.readouterr()
    assert world.rlhf("runs", "list") == 0
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines()[1:]}
    assert rows["first"][1:3] + rows["first"][4:] == ["ppo", "pending", "0", "ErrImagePull"]
    assert rows["second"][2] == "finished"
    assert rows["third"][2] == "stopped"
    assert world.rlhf("runs", "list", "--json") == 0
    looks = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {look["name"]: look["state"] for look in looks} == {
        "first": "pending",
        "second": "finished",
        "third": "stopped",
    }


def test_status_shows_pods_and_what_is_wrong_with_the_last_lines(world: World, capsys: Capture) -> None:
    world.submit()
    looping = {"waiting": {"reason": "CrashLoopBackOff"}}
    world.pod("run-first-x", looping, lastState={"terminated": {"exitCode": 1, "reason": "Error"}})
    world.api.logs["run-first-x", "trainer"] = ["ValueError: no"]
    capsys.readouterr()
    assert world.rlhf("runs", "status", "first") == 1
    printed = capsys.readouterr()
    assert printed.out.startswith("first: ppo, pending, ")
    assert "run-first-x" in printed.out
    assert "node-7" in printed.out
    assert printed.err.splitlines() == [
        "rlhf: container trainer of pod run-first-x ended with exit code 1, again and again",
        "  ValueError: no",
        "rlhf: run 'first' is pending",
    ]
    assert any("/pods/run-first-x/log?container=trainer" in each for each in world.api.requests)


def test_status_of_a_run_that_goes_well_exits_0(world: World, capsys: Capture) -> None:
    world.submit("--nodes", "2")
    world.pod("run-first-x", {"running": {}})
    capsys.readouterr()
    assert world.rlhf("runs", "status", "first", "--json") == 0
    look = json.loads(capsys.readouterr().out)
    assert (look["state"], look["nodes"], look["problems"]) == ("running", 2, [])
    assert look["pods"][0]["machine"] == "node-7"


@pytest.mark.parametrize("command", ["status", "logs", "stop", "resume", "delete"])
def test_a_run_that_is_not_there_is_said_so(world: World, capsys: Capture, command: str) -> None:
    assert world.rlhf("runs", command, "none") == 1
    assert "there is no run 'none' in namespace rlhf; `rlhf runs list` shows" in capsys.readouterr().err


def test_logs_are_those_of_the_newest_pod(world: World, capsys: Capture) -> None:
    world.submit()
    assert world.rlhf("runs", "logs", "first") == 1
    assert "run 'first' has no log yet" in capsys.readouterr().err
    world.pod("run-first-x", {"terminated": {"exitCode": 1}}, "Failed")
    world.pod("run-first-y", {"running": {}})
    world.api.logs["run-first-y", "trainer"] = ["step 1", "step 2 [loss]"]
    assert world.rlhf("runs", "logs", "first") == 0
    assert capsys.readouterr().out == "step 1\nstep 2 [loss]\n"


def test_a_stopped_run_keeps_its_files_and_is_resumed_from_them(world: World, capsys: Capture) -> None:
    world.submit("--nodes", "2", "--image", "trainer:2")
    before = copy.deepcopy(world.api.objects["jobs", "run-first"]["spec"])
    world.pod("run-first-x", {"running": {}})
    assert world.rlhf("runs", "resume", "first") == 1
    assert "run 'first' is running; `rlhf runs logs first --follow` shows it" in capsys.readouterr().err
    assert world.rlhf("runs", "stop", "first") == 0
    assert world.kinds() == {"configmaps", "services"}
    assert world.rlhf("runs", "stop", "first") == 0
    assert "run first was already stopped" in capsys.readouterr().err
    assert world.rlhf("runs", "resume", "first") == 0
    assert world.api.objects["jobs", "run-first"]["spec"] == before


def test_a_failed_run_is_resumed_and_a_finished_one_is_not(world: World, capsys: Capture) -> None:
    world.submit()
    world.end("Failed")
    assert world.rlhf("runs", "resume", "first") == 0
    assert "run first goes on; it was failed" in capsys.readouterr().err
    assert "status" not in world.api.objects["jobs", "run-first"]
    world.end("Complete")
    assert world.rlhf("runs", "resume", "first") == 1
    assert "run 'first' has finished" in capsys.readouterr().err


def test_a_run_that_does_not_end_in_time_is_said_so(world: World, capsys: Capture) -> None:
    world.submit()
    stuck = {"metadata": {"name": "stuck", "labels": {"rlhf-services/run": "first"}}, "spec": {}, "status": {}}
    world.api.objects["pods", "stuck"] = stuck
    world.api.on_look = [lambda: world.api.add({"kind": "Pod", **copy.deepcopy(stuck)})] * 9
    assert world.rlhf("runs", "stop", "first", "--wait", "0") == 1
    assert "run 'first' is still stopping after 0 seconds" in capsys.readouterr().err


def test_delete_removes_all_of_a_run(world: World) -> None:
    world.submit("--nodes", "2")
    assert world.rlhf("runs", "delete", "first") == 0
    assert world.kinds() == set()


def follow(world: World, *meanwhile: Callable[[], None]) -> tuple[str, list[str], list[str]]:
    """How a run ended, its log and what was noted, with what happens before each look."""
    lines: list[str] = []
    notes: list[str] = []
    world.api.on_look = list(meanwhile)
    cluster = connect(Place(kubeconfig=world.kubeconfig))
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
    cluster = connect(Place(kubeconfig=world.kubeconfig))
    options = {"show_line": notes.append, "note": notes.append, "poll_seconds": 0.05}
    away = connect(Place(kubeconfig=unreachable(world)))
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


def test_submit_that_follows_exits_as_the_run_does(world: World, capsys: Capture) -> None:
    world.api.on_look = [lambda: world.end("Complete")]
    assert world.submit("--follow") == 0
    assert world.rlhf("runs", "delete", "first") == 0
    world.api.on_look = [lambda: world.end("Failed", "backoff limit")]
    assert world.submit("--follow") == 1
    assert capsys.readouterr().err.endswith("rlhf: the Job failed: backoff limit\nrlhf: run 'first' failed\n")


def test_without_the_extra_the_package_is_named() -> None:
    script = (
        "import sys; sys.modules['kubernetes'] = None; from rlhf_services.cli.main import main;"
        "sys.exit(main(['runs', 'list']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "rlhf: work with a cluster needs the package 'kubernetes': pip install 'rlhf-services[k8s]'\n"
    )


def test_a_log_that_cannot_be_read_is_an_error_of_the_cluster(world: World) -> None:
    world.api.refusals["GET", "pods"] = (500, "the kubelet does not answer")
    cluster = connect(Place(kubeconfig=world.kubeconfig))
    with pytest.raises(ClusterError, match="the kubelet does not answer"):
        list(cluster.log_lines("run-first-x", "trainer"))
