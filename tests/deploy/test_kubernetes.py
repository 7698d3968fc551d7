"""Services and runs on a real Kubernetes, used as people use them: kubectl, rlhf submit and rlhf runs."""

import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.kube import HERE, STARTUP_SECONDS, Cluster, a_cluster
from tests.deploy.kube_runs import PROMPTS_PER_STEP, TinyRun

pytestmark = [pytest.mark.kubernetes, pytest.mark.timeout(900)]

SUBMITTER = "--as=system:serviceaccount:rlhf:rlhf-submit"
TARGETS = "RLHF_TRAINER__SERVICES__POLICY_TARGETS"
SERVICES = {"policy": 9051, "reward": 9052, "reference": 9053}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster whose services are ready."""
    with a_cluster() as cluster:
        timeout = f"--timeout={STARTUP_SECONDS}s"
        for workload in ("statefulset/policy", "deployment/reward", "deployment/reference"):
            cluster.kubectl("rollout", "status", workload, timeout)
        cluster.kubectl("wait", "--for=condition=Ready", "pod/toolbox", "pod/console", "pod/watcher", timeout)
        yield cluster


def metrics_of(cluster: Cluster, pod: str, port: int) -> str:
    """Returns what Prometheus would read."""
    return cluster.kubectl("get", "--raw", f"/api/v1/namespaces/rlhf/pods/{pod}:{port}/proxy/metrics")


def pod_of(cluster: Cluster, selector: str) -> str:
    """Returns the name of the one pod with these labels."""
    (pod,) = cluster.pods(selector)
    name: str = pod["metadata"]["name"]
    return name


def ready_uids(cluster: Cluster, component: str) -> set[str]:
    """Returns the ids of the pods that are ready and stay."""
    return {
        pod["metadata"]["uid"]
        for pod in cluster.pods(f"app.kubernetes.io/component={component}")
        if "deletionTimestamp" not in pod["metadata"]
        and any(each["type"] == "Ready" and each["status"] == "True" for each in pod["status"].get("conditions", ()))
    }


def test_every_service_becomes_ready_and_shows_its_metrics(cluster: Cluster) -> None:
    for service, port in SERVICES.items():
        pods = cluster.pods(f"app.kubernetes.io/component={service}")
        assert pods
        for pod in pods:
            assert pod["status"]["containerStatuses"][0]["ready"]
            assert "rlhf_" in metrics_of(cluster, pod["metadata"]["name"], port)


def test_a_submitted_run_completes_and_is_listed(cluster: Cluster, tmp_path: Path) -> None:
    run = TinyRun(cluster, tmp_path, "three-steps", steps=3)
    followed = run.submit("--follow")
    assert run.succeeded(), followed
    assert run.steps_done() == [1, 2, 3]
    assert "three-steps" in cluster.rlhf("runs", "list")
    assert "three-steps: ppo, finished" in cluster.rlhf("runs", "status", "three-steps")
    assert cluster.rlhf("runs", "logs", "three-steps").strip()


def test_a_stopped_run_goes_on_where_it_was(cluster: Cluster, tmp_path: Path) -> None:
    run = TinyRun(cluster, tmp_path, "stopped", steps=40, checkpoint_every=20)
    run.submit()
    run.wait_for_step(3)
    cluster.rlhf("runs", "stop", "stopped")
    assert "job" not in cluster.kubectl("get", "jobs", "--output=name", "--selector=rlhf-services/run=stopped")
    done = len(run.rows())
    assert done < run.steps
    assert "stopped" in cluster.rlhf("runs", "list")
    cluster.rlhf("runs", "resume", "stopped")
    run.wait_until_complete()
    assert run.steps_done() == list(range(1, run.steps + 1))
    log = cluster.rlhf("runs", "logs", "stopped")
    assert f"step-{done:06d}" in log or f"step {done}" in log, log[:2000]


def test_a_deleted_policy_pod_costs_no_prompt_and_none_is_trained_on_twice(cluster: Cluster, tmp_path: Path) -> None:
    run = TinyRun(cluster, tmp_path, "bereft", steps=100)  # long enough to be in it when the pod stops serving
    run.submit()
    run.wait_for_step(3)
    trainer = pod_of(cluster, "rlhf-services/run=bereft")
    assert "rlhf_trainer_" in metrics_of(cluster, trainer, 9054)
    before = ready_uids(cluster, "policy")
    cluster.kubectl("delete", "pod", "policy-0", "--wait=false")
    run.wait_until_complete()
    assert not before & ready_uids(cluster, "policy")
    assert pod_of(cluster, "rlhf-services/run=bereft") == trainer  # the trainer waited; it was not started anew
    # The new pod has another address, unless it happens to get the old one's.
    assert re.search(r"policy service at \S+ (has joined|is back)", cluster.rlhf("runs", "logs", "bereft"))
    expect_each_prompt_trained_on_once(run)


def test_a_run_takes_up_and_lets_go_of_replicas_as_the_policy_is_scaled(cluster: Cluster, tmp_path: Path) -> None:
    script = (HERE / "watch_replicas.py").read_text()
    named = ("kubernetes:///policy:50051", "1", "3", "2")
    watch = cluster.start("exec", "watcher", "--", "python", "-c", script, *named)
    run = TinyRun(cluster, tmp_path, "scaled", steps=400)  # long enough for two replicas to start in it
    watching = {"name": TARGETS, "value": '["kubernetes:///policy-pods:50051"]'}
    others = [each for each in trainer_field(cluster, "env") if each["name"] != TARGETS]
    with trainer_with(cluster, "env", [*others, watching]):
        run.submit()
    try:
        run.wait_for_step(3)
        trainer = pod_of(cluster, "rlhf-services/run=scaled")
        for count in (3, 2):
            scale_to(cluster, trainer, count)
            run.wait_for_step(len(run.rows()) + 10)
        run.wait_until_complete()
    finally:
        cluster.kubectl("scale", "statefulset/policy", "--replicas=1")
        watch.terminate()
    seen = [set(json.loads(line)) for line in watch.communicate(timeout=60)[0].splitlines() if line.startswith("[")]
    names = [f"policy-{index}.policy.rlhf.svc:50051" for index in range(3)]
    assert seen[0] == {names[0]}
    assert set(names) in seen
    assert seen[-1] == set(names[:2])
    assert pod_of(cluster, "rlhf-services/run=scaled") == trainer
    log = cluster.rlhf("runs", "logs", "scaled")
    assert len(re.findall(r"policy service at \S+ (?:has joined|is back)", log)) == 2  # it was seen before it served
    assert len(re.findall(r"policy service at \S+ has left", log)) == 1
    expect_each_prompt_trained_on_once(run)


def scale_to(cluster: Cluster, trainer: str, count: int) -> None:
    """Scales the policy, and waits until a run samples from as many replicas."""
    cluster.kubectl("scale", "statefulset/policy", f"--replicas={count}")
    holds = f"{count} replicas of the policy in the run"
    cluster.wait_until(lambda: ready_replicas(cluster, trainer) == count, holds, STARTUP_SECONDS)


def ready_replicas(cluster: Cluster, trainer: str) -> int:
    """Returns how many replicas a run samples from."""
    (value,) = re.findall(r'^rlhf_trainer_replicas\{state="ready"\} (\S+)$', metrics_of(cluster, trainer, 9054), re.M)
    return int(float(value))


def expect_each_prompt_trained_on_once(run: TinyRun) -> None:
    """Fails unless every step of a complete run had its prompts, and no prompt was in two."""
    rows = run.rows()
    assert [row["step"] for row in rows] == list(range(1, run.steps + 1))
    assert {row["rollouts"] for row in rows} == {PROMPTS_PER_STEP}
    assert {row["dropped_rollouts"] for row in rows} == {0}
    rollouts = run.journaled()
    trained_on = Counter(tuple(rollout["prompt_ids"]) for rollout in rollouts)
    assert len(trained_on) == len(run.prompts)
    assert set(trained_on.values()) == {1}
    assert len({rollout["rollout_id"] for rollout in rollouts}) == len(run.prompts)


def test_a_rolling_update_of_the_reward_service_drops_no_request(cluster: Cluster) -> None:
    before = ready_uids(cluster, "reward")
    script = (HERE / "score_load.py").read_text()
    load = cluster.start("exec", "--stdin", "toolbox", "--", "python", "-c", script, "reward:50052", "4")
    try:
        time.sleep(3)
        cluster.kubectl("rollout", "restart", "deployment/reward")
        cluster.kubectl("rollout", "status", "deployment/reward", f"--timeout={STARTUP_SECONDS}s")
        cluster.wait_until(
            lambda: len(cluster.pods("app.kubernetes.io/component=reward")) == len(before), "the old pods to be gone"
        )
    finally:
        printed, _ = load.communicate(timeout=60)
    assert not before & ready_uids(cluster, "reward")
    result = json.loads(printed.splitlines()[-1])
    print(f"rolling update: {printed.splitlines()[-1]}")
    assert result["failed"] == {}
    assert result["scored"] > 100


def trainer_field(cluster: Cluster, field: str) -> Any:
    """Returns a field of the container in the template of runs."""
    return cluster.get("podtemplate", "trainer")["template"]["spec"]["containers"][0][field]


@contextmanager
def trainer_with(cluster: Cluster, field: str, value: object) -> Iterator[None]:
    """The template of runs has another value in a field of its container for a while."""
    before = trainer_field(cluster, field)

    def put(value: object) -> None:
        patch = [{"op": "replace", "path": f"/template/spec/containers/0/{field}", "value": value}]
        cluster.kubectl("patch", "podtemplate", "trainer", "--type=json", f"--patch={json.dumps(patch)}")

    put(value)
    try:
        yield
    finally:
        put(before)


def expect_explanation(run: TinyRun, *words: str) -> None:
    """Waits until `rlhf runs status` says all of these words, and takes the run away."""
    cluster = run.cluster

    def explained() -> bool:
        text = cluster.rlhf("runs", "status", run.name, check=False)
        return all(word in text for word in words)

    try:
        cluster.wait_until(explained, f"`rlhf runs status` to say {', '.join(words)}", 90)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{cluster.rlhf('runs', 'status', run.name, check=False)}") from None
    finally:
        cluster.rlhf("runs", "stop", run.name)


def test_status_explains_an_image_that_cannot_be_pulled(cluster: Cluster, tmp_path: Path) -> None:
    run = TinyRun(cluster, tmp_path, "no-image", steps=3)
    run.submit("--image", "rlhf-services/nowhere:0")
    expect_explanation(run, "rlhf-services/nowhere:0")


def test_status_explains_a_pod_that_no_node_has_room_for(cluster: Cluster, tmp_path: Path) -> None:
    run = TinyRun(cluster, tmp_path, "no-room", steps=3)
    with trainer_with(cluster, "resources", {"requests": {"cpu": "1000"}}):
        run.submit()
    expect_explanation(run, "Insufficient cpu")


def test_status_explains_a_trainer_that_ran_out_of_memory(cluster: Cluster, tmp_path: Path) -> None:
    run = TinyRun(cluster, tmp_path, "no-memory", steps=3)
    with trainer_with(cluster, "resources", {"requests": {"memory": "64Mi"}, "limits": {"memory": "64Mi"}}):
        run.submit()
    expect_explanation(run, "needed more memory than 64Mi")


def test_a_pod_of_the_cluster_submits_runs_too(cluster: Cluster, tmp_path: Path) -> None:
    run = TinyRun(cluster, tmp_path, "from-inside", steps=2)
    for path in tmp_path.iterdir():
        cluster.inside("console", "sh", "-c", f"cat > /tmp/{path.name}", text=path.read_text())
    arguments = [each.replace(str(tmp_path), "/tmp") for each in run.arguments]
    cluster.inside("console", "rlhf", "submit", *arguments)
    run.wait_until_complete()
    assert "from-inside" in cluster.inside("console", "rlhf", "runs", "list")
    assert "finished" in cluster.inside("console", "rlhf", "runs", "status", "from-inside")
    assert cluster.inside("console", "rlhf", "runs", "logs", "from-inside").strip()
    assert run.steps_done() == [1, 2]


@pytest.mark.parametrize(
    "what", ["create jobs", "delete jobs", "create configmaps", "get pods --subresource=log", "list events"]
)
def test_who_submits_may_do_what_runs_need(cluster: Cluster, what: str) -> None:
    assert cluster.kubectl("auth", "can-i", *what.split(), SUBMITTER).strip() == "yes"


@pytest.mark.parametrize(
    "what",
    [
        "get secrets",
        "create pods",
        "create pods --subresource=exec",
        "delete pods",
        "patch deployments",
        "create rolebindings",
    ],
)
def test_who_submits_may_do_nothing_else(cluster: Cluster, what: str) -> None:
    assert cluster.kubectl("auth", "can-i", *what.split(), SUBMITTER, check=False).strip() == "no"
    elsewhere = ("auth", "can-i", "create", "jobs", SUBMITTER, "--namespace=default")
    assert cluster.kubectl(*elsewhere, check=False).strip() == "no"
