"""Runs on a cluster: submit, list, look at, stop, resume and delete them."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from rlhf_cli.cluster.connection import Cluster
from rlhf_cli.cluster.diagnosis import (
    Problem,
    RunState,
    by_age,
    diagnose,
    index_of,
    phase_of,
    reason_of,
    restarts_of,
    state_of,
    trainer_started,
)
from rlhf_cli.cluster.manifests import ALGORITHM_NOTE, NODES_NOTE, RUN_LABEL, TRAINER, Manifest, run_manifests, spec_of
from rlhf_cli.cluster.run_spec import RunSpec
from rlhf_cli.errors import AbsentError, ClusterError, ExistsError

LOG_TAIL_LINES = 20
POLL_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PodLook:
    """A pod of a run."""

    name: str
    node_index: int
    """Which of the run's nodes it is."""
    phase: str
    reason: str
    """Why it waits or how it ended, in a word; "" if all is well."""
    machine: str
    """The cluster's node; "" while none has taken it."""
    created: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLook:
    """A run as the cluster has it."""

    name: str
    algorithm: str
    nodes: int
    state: RunState
    created: datetime | None
    """When it was submitted, or last resumed."""
    restarts: int
    pods: tuple[PodLook, ...]
    problems: tuple[Problem, ...]


def trainer_template(cluster: Cluster) -> Manifest:
    """Returns the PodTemplate of the deployment. Raises: ClusterError if there is none."""
    try:
        return cluster.get("PodTemplate", TRAINER)
    except AbsentError:
        raise ClusterError(
            f"namespace {cluster.namespace} has no PodTemplate '{TRAINER}'; apply an overlay first: kubectl apply -k "
            "deploy/k8s/overlays/cpu-small, or name the deployment's namespace with --namespace"
        ) from None


def submit(cluster: Cluster, spec: RunSpec) -> None:
    """Creates a run. Raises: ClusterError if there is one of that name; what was created is then taken back."""
    manifests = run_manifests(spec, trainer_template(cluster))
    exists = (
        f"run '{spec.name}' exists already; `rlhf runs resume {spec.name}` goes on with it, "
        f"`rlhf runs delete {spec.name}` removes it, or take another --name"
    )
    _create(cluster, manifests, exists)


def list_runs(cluster: Cluster) -> list[RunLook]:
    """Returns all runs of the namespace, the newest first, with those reasons alone that stand in their pods."""
    jobs = {each["metadata"]["labels"][RUN_LABEL]: each for each in cluster.find("Job", labels=RUN_LABEL)}
    pods = cluster.find("Pod", labels=RUN_LABEL)
    looks = []
    for config in cluster.find("ConfigMap", labels=RUN_LABEL):
        name = config["metadata"]["labels"][RUN_LABEL]
        own = [pod for pod in pods if pod["metadata"]["labels"][RUN_LABEL] == name]
        looks.append(_look(config, jobs.get(name), own, ()))
    return sorted(looks, key=lambda look: look.created.timestamp() if look.created else 0.0, reverse=True)


def look_at(cluster: Cluster, name: str) -> RunLook:
    """Returns a run with its pods, and with all that is wrong. Raises: ClusterError if there is none."""
    config = _config_of(cluster, name)
    job = _job_of(cluster, name)
    pods = pods_of(cluster, name)
    events = cluster.find("Event") if state_of(job, pods) == "pending" else []
    return _look(config, job, pods, events)


def pods_of(cluster: Cluster, name: str) -> list[Manifest]:
    """Returns the pods of a run, the oldest first."""
    return by_age(cluster.find("Pod", labels=f"{RUN_LABEL}={name}"))


def newest_log(cluster: Cluster, name: str, node_index: int) -> Iterator[str]:
    """Returns the log of the trainer in the newest pod of a node. Raises: ClusterError if there is none yet."""
    _config_of(cluster, name)
    pods = [pod for pod in pods_of(cluster, name) if index_of(pod) == node_index and trainer_started(pod)]
    if not pods:
        raise ClusterError(f"run '{name}' has no log yet, or no longer; `rlhf runs status {name}` says how it stands")
    return cluster.log_lines(pods[-1]["metadata"]["name"], TRAINER)


def last_lines(cluster: Cluster, problem: Problem) -> list[str]:
    """Returns the end of the log that says more of a problem; nothing if there is none."""
    if not problem.container:
        return []
    options = {"tailLines": str(LOG_TAIL_LINES), "previous": str(problem.previous).lower()}
    try:
        return list(cluster.log_lines(problem.pod, problem.container, **options))
    except ClusterError:  # the pod or its last start was cleared away meanwhile
        return []


def stop(cluster: Cluster, name: str, *, wait_seconds: float) -> bool:
    """Ends a run's pods, which save a checkpoint, and waits until they are gone; returns whether any were there.

    Raises: ClusterError if there is no such run, or if it took longer.
    """
    _config_of(cluster, name)
    if not cluster.delete("Job", f"run-{name}"):
        return False
    _wait_gone(cluster, name, wait_seconds)
    return True


def resume(cluster: Cluster, name: str) -> RunState:
    """Starts a stopped or failed run again from its last checkpoint; returns what it was.

    Raises: ClusterError if there is no such run, or if it goes on already or has finished.
    """
    config = _config_of(cluster, name)
    state = state_of(_job_of(cluster, name), pods_of(cluster, name))
    if state in ("pending", "running", "stopping"):
        remedy = "wait until it is stopped" if state == "stopping" else f"`rlhf runs logs {name} --follow` shows it"
        raise ClusterError(f"run '{name}' is {state}; {remedy}")
    if state == "finished":
        raise ClusterError(f"run '{name}' has finished: nothing is left to do; submit another one, with another --name")
    manifests = run_manifests(spec_of(config), trainer_template(cluster))
    if state == "failed":
        stop(cluster, name, wait_seconds=60.0)
    for manifest in manifests:
        if manifest["kind"] == "Job":
            _create(cluster, [manifest], f"run '{name}' was resumed by somebody else meanwhile")
    return state


def delete(cluster: Cluster, name: str, *, wait_seconds: float) -> None:
    """Deletes what a run is on the cluster; its output stays on the volume. Raises: ClusterError if there is none."""
    _config_of(cluster, name)
    if cluster.delete("Job", f"run-{name}"):
        _wait_gone(cluster, name, wait_seconds)
    cluster.delete("Service", f"run-{name}")
    cluster.delete("ConfigMap", f"run-{name}")


def _config_of(cluster: Cluster, name: str) -> Manifest:
    try:
        return cluster.get("ConfigMap", f"run-{name}")
    except AbsentError:
        raise AbsentError(
            f"there is no run '{name}' in namespace {cluster.namespace}; `rlhf runs list` shows what there is"
        ) from None


def _job_of(cluster: Cluster, name: str) -> Manifest | None:
    try:
        return cluster.get("Job", f"run-{name}")
    except AbsentError:
        return None


def _create(cluster: Cluster, manifests: Sequence[Manifest], exists: str) -> None:
    """Creates objects, all or none."""
    done: list[Manifest] = []
    try:
        for manifest in manifests:
            cluster.create(manifest)
            done.append(manifest)
    except ClusterError as error:
        for manifest in reversed(done):
            cluster.delete(manifest["kind"], manifest["metadata"]["name"])
        raise (ClusterError(exists) if isinstance(error, ExistsError) else error) from None


def _wait_gone(cluster: Cluster, name: str, wait_seconds: float) -> None:
    deadline = time.monotonic() + wait_seconds
    while _job_of(cluster, name) is not None or pods_of(cluster, name):
        if time.monotonic() > deadline:
            raise ClusterError(
                f"run '{name}' is still stopping after {wait_seconds:.0f} seconds; `rlhf runs status {name}` shows "
                "what it waits for, and --wait gives it longer"
            )
        time.sleep(POLL_SECONDS)


def _look(
    config: Manifest,
    job: Manifest | None,
    pods: Sequence[Manifest],
    events: Sequence[Manifest],
) -> RunLook:
    metadata = config["metadata"]
    notes = metadata.get("annotations", {})
    return RunLook(
        name=metadata["labels"][RUN_LABEL],
        algorithm=notes.get(ALGORITHM_NOTE, ""),
        nodes=int(notes.get(NODES_NOTE, 1)),
        state=state_of(job, pods),
        created=_created(job or config),
        restarts=restarts_of(job, pods),
        pods=tuple(_look_at_pod(pod) for pod in by_age(pods)),
        problems=tuple(diagnose(job, pods, events)),
    )


def _look_at_pod(pod: Manifest) -> PodLook:
    return PodLook(
        name=pod["metadata"]["name"],
        node_index=index_of(pod),
        phase=phase_of(pod),
        reason=reason_of(pod),
        machine=pod.get("spec", {}).get("nodeName", ""),
        created=_created(pod),
    )


def _created(manifest: Manifest) -> datetime | None:
    text = manifest["metadata"].get("creationTimestamp")
    return datetime.fromisoformat(text) if text else None
