"""`rlhf submit` and `rlhf runs` against a fake of the Kubernetes API."""

import copy
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from rlhf_cli.cluster.connection import connect
from rlhf_cli.errors import ClusterError
from rlhf_cli.main import main
from tests.support.cluster_world import CONFIG, World, cluster_world, unreachable
from tests.support.paths import ROOT

Capture = pytest.CaptureFixture[str]
TRAINER_YAML = ROOT / "deploy" / "k8s" / "base" / "trainer.yaml"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with cluster_world(tmp_path) as world:
        yield world


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
    assert connect(kubeconfig=world.kubeconfig).namespace == "team-a"
    assert connect(kubeconfig=world.kubeconfig, namespace="team-b").namespace == "team-b"


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


def test_submit_that_follows_exits_as_the_run_does(world: World, capsys: Capture) -> None:
    world.api.on_look = [lambda: world.end("Complete")]
    assert world.submit("--follow") == 0
    assert world.rlhf("runs", "delete", "first") == 0
    world.api.on_look = [lambda: world.end("Failed", "backoff limit")]
    assert world.submit("--follow") == 1
    assert capsys.readouterr().err.endswith("rlhf: the Job failed: backoff limit\nrlhf: run 'first' failed\n")


def test_without_the_extra_the_package_is_named() -> None:
    script = (
        "import sys; sys.modules['kubernetes'] = None; from rlhf_cli.main import main;sys.exit(main(['runs', 'list']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "rlhf: work with a cluster needs the package 'kubernetes': pip install 'rlhf-services[k8s]'\n"
    )


def test_a_log_that_cannot_be_read_is_an_error_of_the_cluster(world: World) -> None:
    world.api.refusals["GET", "pods"] = (500, "the kubelet does not answer")
    cluster = connect(kubeconfig=world.kubeconfig)
    with pytest.raises(ClusterError, match="the kubelet does not answer"):
        list(cluster.log_lines("run-first-x", "trainer"))
