"""What is said of pods, from the API's own objects."""

from typing import Any

import pytest

from rlhf_cli.cluster.diagnosis import Problem, diagnose, reason_of, restarts_of, state_of, trainer_started

JOB: dict[str, Any] = {"metadata": {"name": "run-a"}, "spec": {"completions": 1}, "status": {"active": 1}}


def job_that(condition: str, message: str = "") -> dict[str, Any]:
    """A Job with a condition."""
    return {**JOB, "status": {"conditions": [{"type": condition, "status": "True", "message": message}]}}


def pod(phase: str = "Pending", *, name: str = "run-a-1", created: str = "10:00:00", **status: Any) -> dict[str, Any]:
    """A pod with one init container and the trainer."""
    return {
        "metadata": {"name": name, "creationTimestamp": f"2026-05-01T{created}Z"},
        "spec": {
            "initContainers": [{"name": "fetch-model", "resources": {"limits": {"memory": "1Gi"}}}],
            "containers": [{"name": "trainer", "resources": {"limits": {"memory": "4Gi"}}}],
            "volumes": [{"name": "runs", "persistentVolumeClaim": {"claimName": "runs"}}],
        },
        "status": {"phase": phase, **status},
    }


def container(state: dict[str, Any], *, name: str = "trainer", **more: Any) -> list[dict[str, Any]]:
    """The statuses of one container."""
    return [{"name": name, "image": "trainer:1", "restartCount": 0, "state": state, **more}]


def waiting(reason: str, message: str = "") -> list[dict[str, Any]]:
    """The trainer waits."""
    return container({"waiting": {"reason": reason, "message": message}})


def event(kind: str, name: str, reason: str, message: str, time: str = "10:00:00") -> dict[str, Any]:
    """An event, as the API lists it."""
    return {
        "metadata": {"creationTimestamp": f"2026-05-01T{time}Z"},
        "involvedObject": {"kind": kind, "name": name},
        "reason": reason,
        "message": message,
        "lastTimestamp": f"2026-05-01T{time}Z",
        "eventTime": None,
    }


def unscheduled(message: str) -> list[dict[str, Any]]:
    """The conditions of a pod that no node takes."""
    return [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]


def texts(
    *pods: dict[str, Any], job: dict[str, Any] | None = JOB, events: tuple[dict[str, Any], ...] = ()
) -> list[str]:
    """What is said."""
    return [problem.text for problem in diagnose(job, pods, events)]


def test_states() -> None:
    running = pod("Running", containerStatuses=container({"running": {}}))
    fetching = pod(initContainerStatuses=container({"running": {}}, name="fetch-model"))
    assert state_of(None, []) == "stopped"
    assert state_of(JOB, []) == state_of(JOB, [fetching]) == "pending"
    assert state_of(JOB, [running]) == "running"
    assert state_of({**JOB, "metadata": {"deletionTimestamp": "now"}}, [running]) == "stopping"
    assert state_of(job_that("Complete"), [pod("Succeeded")]) == "finished"
    assert state_of(job_that("Failed"), [pod("Failed")]) == "failed"


def test_a_run_that_goes_well_has_no_problem_and_no_reason() -> None:
    running = pod("Running", containerStatuses=container({"running": {}}))
    assert texts(running) == []
    assert reason_of(running) == ""
    assert texts(pod(containerStatuses=waiting("ContainerCreating"))) == []
    assert texts(pod("Succeeded", containerStatuses=container({"terminated": {"exitCode": 0}}))) == []


def test_restarts_are_failed_pods_that_were_replaced_and_containers_started_anew() -> None:
    failed = pod("Failed", name="run-a-0")
    again = pod("Running", containerStatuses=container({"running": {}}, restartCount=2))
    assert restarts_of(JOB, [again]) == 2
    assert restarts_of(JOB, [failed, again]) == 3
    assert restarts_of(job_that("Failed"), [failed, pod("Failed")]) == 1  # the last one was not replaced


@pytest.mark.parametrize("reason", ["ErrImagePull", "ImagePullBackOff", "InvalidImageName"])
def test_an_image_that_cannot_be_pulled_is_named(reason: str) -> None:
    assert texts(pod(containerStatuses=waiting(reason, "not found"))) == [
        f"container trainer of pod run-a-1: image trainer:1 cannot be pulled ({reason}: not found); check its name, "
        "its tag and the pull secret"
    ]


def test_an_image_is_told_with_the_events_words_if_there_are_any() -> None:
    events = (
        event("Pod", "run-a-1", "Failed", 'Failed to pull image "trainer:1": no basic auth credentials', "10:00:01"),
        event("Pod", "run-a-1", "Failed", "Error: ImagePullBackOff", "10:00:02"),
    )
    said = texts(pod(containerStatuses=waiting("ImagePullBackOff", "Back-off pulling image")), events=events)
    assert '(ImagePullBackOff: Failed to pull image "trainer:1": no basic auth credentials)' in said[0]


def test_an_image_that_must_be_on_the_node_is_named() -> None:
    assert texts(pod(containerStatuses=waiting("ErrImageNeverPull"))) == [
        "container trainer of pod run-a-1: image trainer:1 is not on the node, and imagePullPolicy is Never; load it "
        "there, or change one"
    ]


def test_a_pod_that_fits_on_no_node_has_the_schedulers_words() -> None:
    one = pod(conditions=unscheduled("0/1 nodes are available: 1 Insufficient nvidia.com/gpu."))
    late = event("PersistentVolumeClaim", "runs", "FailedBinding", "no volume")
    assert texts(one, events=(late,)) == [
        "pod run-a-1 fits on no node: 0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
    ]
    assert reason_of(one) == "Unschedulable"


def test_a_volume_that_is_not_there_is_named_with_its_reason() -> None:
    message = "0/1 nodes are available: pod has unbound immediate PersistentVolumeClaims."
    events = (
        event("PersistentVolumeClaim", "other", "FailedBinding", "not ours"),
        event("PersistentVolumeClaim", "runs", "FailedBinding", "no storage class is set", "10:00:02"),
        event("PersistentVolumeClaim", "runs", "ProvisioningFailed", "old", "10:00:01"),
    )
    assert texts(pod(conditions=unscheduled(message)), events=events) == [
        f"pod run-a-1 fits on no node: {message}",
        "PersistentVolumeClaim runs is pending: no storage class is set",
    ]


def test_a_missing_secret_is_told_in_the_kubelets_words() -> None:
    assert texts(pod(containerStatuses=waiting("CreateContainerConfigError", 'secret "hub" not found'))) == [
        'container trainer of pod run-a-1 cannot start: CreateContainerConfigError: secret "hub" not found'
    ]


def test_a_volume_that_cannot_be_mounted_is_told_from_the_newest_event() -> None:
    events = (
        event("Pod", "run-a-1", "FailedMount", "older", "10:01:00"),
        event("Pod", "run-a-1", "FailedMount", 'configmap "x" not found', "10:02:00"),
        event("Pod", "run-a-1", "FailedMount", "volumes=[s]: timed out waiting for the condition", "10:05:00"),
        event("Pod", "run-a-2", "FailedMount", "another pod's", "10:03:00"),
        event("Pod", "run-a-1", "Pulled", "no failure", "10:04:00"),
    )
    assert texts(pod(containerStatuses=waiting("ContainerCreating")), events=events) == [
        'pod run-a-1 does not start: FailedMount: configmap "x" not found'
    ]


def test_memory_that_ran_out_is_told_with_its_limit() -> None:
    killed = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    assert texts(pod("Failed", containerStatuses=container(killed))) == [
        "container trainer of pod run-a-1 was killed: it needed more memory than 4Gi, its limit; raise "
        "resources.limits.memory of the PodTemplate"
    ]
    assert "than 1Gi, its limit" in texts(pod(initContainerStatuses=container(killed, name="fetch-model")))[0]


def test_an_init_container_that_fails_points_to_its_log() -> None:
    ended = {"terminated": {"exitCode": 1, "reason": "Error"}}
    assert diagnose(JOB, [pod("Failed", initContainerStatuses=container(ended, name="fetch-model"))], []) == [
        Problem(
            text="init container fetch-model of pod run-a-1 ended with exit code 1",
            pod="run-a-1",
            container="fetch-model",
        )
    ]


def test_a_container_in_a_crash_loop_points_to_the_log_of_its_last_start() -> None:
    looping = container(
        {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}},
        lastState={"terminated": {"exitCode": 2, "reason": "Error", "message": "no such field\n"}},
    )
    assert diagnose(JOB, [pod("Running", containerStatuses=looping)], []) == [
        Problem(
            text="container trainer of pod run-a-1 ended with exit code 2: no such field, again and again",
            pod="run-a-1",
            container="trainer",
            previous=True,
        )
    ]


def test_an_evicted_pod_says_why() -> None:
    assert texts(pod("Failed", reason="Evicted", message="The node was low on memory.")) == [
        "pod run-a-1 was ended: Evicted: The node was low on memory."
    ]


def test_a_job_that_may_not_create_pods_says_why() -> None:
    refused = event("Job", "run-a", "FailedCreate", "exceeded quota")
    assert texts(events=(refused,)) == ["the Job cannot create a pod: exceeded quota"]
    assert texts(pod(), events=(refused,)) == []


def test_a_failed_job_says_why_before_its_last_pod_does() -> None:
    ended = container({"terminated": {"exitCode": 1, "reason": "Error"}})
    first = pod("Failed", name="run-a-0", created="10:00:00", containerStatuses=ended)
    second = pod("Failed", name="run-a-1", created="10:05:00", containerStatuses=ended)
    job = job_that("Failed", "Job has reached the specified backoff limit")
    assert texts(second, first, job=job) == [
        "the Job failed: Job has reached the specified backoff limit",
        "container trainer of pod run-a-1 ended with exit code 1",
    ]
    assert reason_of(second) == "Error (1)"


def test_every_node_of_a_run_is_looked_at() -> None:
    pods = []
    for index in (0, 1):
        each = pod(name=f"run-a-{index}-x", conditions=unscheduled("no room"))
        each["metadata"]["annotations"] = {"batch.kubernetes.io/job-completion-index": str(index)}
        pods.append(each)
    assert texts(*pods) == [f"pod run-a-{index}-x fits on no node: no room" for index in (0, 1)]


def test_the_trainer_has_a_log_once_it_ran() -> None:
    assert not trainer_started(pod())
    assert not trainer_started(pod(containerStatuses=waiting("PodInitializing")))
    assert trainer_started(pod("Running", containerStatuses=container({"running": {}})))
    assert trainer_started(pod("Failed", containerStatuses=container({"terminated": {"exitCode": 1}})))
