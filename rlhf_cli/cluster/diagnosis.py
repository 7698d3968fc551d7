"""Why a run's pods do not start, or ended: sentences from what the API says of them. Pure functions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlhf_cli.cluster.manifests import TRAINER, Manifest

RunState = Literal["pending", "running", "stopping", "stopped", "finished", "failed"]

PULL_REASONS = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ImageInspectError", "RegistryUnavailable")
STARTING = ("ContainerCreating", "PodInitializing")
START_EVENTS = ("FailedMount", "FailedAttachVolume", "FailedCreatePodSandBox", "NetworkNotReady")
CLAIM_EVENTS = ("FailedBinding", "ProvisioningFailed", "WaitForFirstConsumer", "ExternalProvisioning")
TIMED_OUT = "timed out waiting for the condition"
"""Ends the messages that say that something failed, but not why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something that is wrong."""

    text: str
    pod: str = ""
    container: str = ""
    """Whose last log lines say more; "" if none do."""
    previous: bool = False
    """Whether they are those of the container's last start."""


def state_of(job: Manifest | None, pods: Sequence[Manifest]) -> RunState:
    """Returns where a run stands. A run without a Job was stopped."""
    if job is None:
        return "stopped"
    if "deletionTimestamp" in job["metadata"]:
        return "stopping"
    true = {each["type"] for each in job.get("status", {}).get("conditions", []) if each["status"] == "True"}
    if "Complete" in true:
        return "finished"
    if "Failed" in true:
        return "failed"
    runs = any(name == TRAINER and "running" in state for pod in pods for name, state in _states(pod))
    return "running" if runs else "pending"


def restarts_of(job: Manifest | None, pods: Sequence[Manifest]) -> int:
    """Returns how many of the run's pods were replaced after they failed, and containers restarted."""
    failed = [phase_of(pod) for pod in pods].count("Failed")
    if job is not None and state_of(job, pods) == "failed":
        failed -= min(failed, job["spec"].get("completions", 1))
    counts: list[int] = [each.get("restartCount", 0) for pod in pods for _, each in _statuses(pod)]
    return failed + sum(counts)


def phase_of(pod: Manifest) -> str:
    """Returns the phase of a pod, as the API names it."""
    return str(pod.get("status", {}).get("phase", "Pending"))


def by_age(pods: Sequence[Manifest]) -> list[Manifest]:
    """Returns pods, the oldest first."""
    return sorted(pods, key=lambda pod: (pod["metadata"].get("creationTimestamp", ""), pod["metadata"]["name"]))


def index_of(pod: Manifest) -> int:
    """Returns which node of the run a pod is."""
    return int(pod["metadata"].get("annotations", {}).get("batch.kubernetes.io/job-completion-index", 0))


def trainer_started(pod: Manifest) -> bool:
    """Whether the trainer's container has a log."""
    return any(
        container == TRAINER and ("running" in state or "terminated" in state)
        for container, state in _states(pod, "containerStatuses")
    )


def diagnose(job: Manifest | None, pods: Sequence[Manifest], events: Sequence[Manifest]) -> list[Problem]:
    """Returns what is wrong with the newest pod of every node; nothing if all runs, or ended, as it should.

    Args:
        events: those of the Job, its pods and its claims; may be empty, then some reasons are missing.
    """
    problems = list(_job_problems(job, pods, events))
    for pod in {index_of(pod): pod for pod in by_age(pods)}.values():
        problems += _pod_problems(pod, events)
    return problems


def reason_of(pod: Manifest) -> str:
    """Returns in a word why a pod is where it is: what a container waits for, or why it ended; "" if all is well."""
    status = pod.get("status", {})
    for field in ("initContainerStatuses", "containerStatuses"):
        for _, state in _states(pod, field):
            waiting, ended = state.get("waiting", {}), state.get("terminated", {})
            if waiting.get("reason"):
                return str(waiting["reason"])
            if ended.get("exitCode", 0) != 0:
                return f"{ended.get('reason', 'Error')} ({ended['exitCode']})"
    unscheduled = _unscheduled(pod)
    return str(status.get("reason") or (unscheduled or {}).get("reason", ""))


def _job_problems(job: Manifest | None, pods: Sequence[Manifest], events: Sequence[Manifest]) -> Iterator[Problem]:
    if job is None:
        return
    for condition in job.get("status", {}).get("conditions", []):
        if condition["type"] == "Failed" and condition["status"] == "True":
            yield Problem(text=f"the Job failed: {condition.get('message', condition.get('reason', ''))}")
    event = None if pods else _last_event(events, "Job", job["metadata"]["name"], ("FailedCreate",))
    if event is not None:
        yield Problem(text=f"the Job cannot create a pod: {event['message']}")


def _pod_problems(pod: Manifest, events: Sequence[Manifest]) -> Iterator[Problem]:
    name, status = pod["metadata"]["name"], pod.get("status", {})
    unscheduled = _unscheduled(pod)
    if unscheduled is not None:
        message = unscheduled.get("message", "the scheduler gives no reason")
        yield Problem(pod=name, text=f"pod {name} fits on no node: {message}")
        if "persistentvolumeclaim" in message.lower():
            yield from _claim_problems(pod, events)
        return
    if status.get("reason"):  # such as Evicted: the containers' states are gone
        yield Problem(pod=name, text=f"pod {name} was ended: {status['reason']}: {status.get('message', '')}")
    found = [
        problem
        for field in ("initContainerStatuses", "containerStatuses")
        for container, entry in _statuses(pod, field)
        for problem in _container_problems(pod, container, entry, events, is_init=field.startswith("init"))
    ]
    yield from found
    waits = [state["waiting"].get("reason") for _, state in _states(pod) if "waiting" in state]
    event = _last_event(events, "Pod", name, START_EVENTS) if not found and {*waits} & {*STARTING} else None
    if event is not None:
        yield Problem(pod=name, text=f"pod {name} does not start: {event['reason']}: {event['message']}")


def _container_problems(
    pod: Manifest, container: str, entry: Manifest, events: Sequence[Manifest], *, is_init: bool
) -> Iterator[Problem]:
    """Yields why a container waits or how it ended; a container of one failed pod is one sentence."""
    name = pod["metadata"]["name"]
    who = f"{'init ' if is_init else ''}container {container} of pod {name}"
    waiting, ended = entry.get("state", {}).get("waiting"), entry.get("state", {}).get("terminated")
    if ended is not None and ended.get("exitCode", 0) != 0:
        yield Problem(pod=name, container=container, text=f"{who} {_ending(pod, container, ended)}")
    if waiting is None:
        return
    reason, message = waiting.get("reason", ""), waiting.get("message", "")
    image = entry.get("image", "")
    if reason == "ErrImageNeverPull":
        text = f"{who}: image {image} is not on the node, and imagePullPolicy is Never; load it there, or change one"
        yield Problem(pod=name, text=text)
    elif reason in PULL_REASONS:
        event = _last_event(events, "Pod", name, ("Failed",), about="pull")
        message = event["message"] if event else message
        remedy = "check its name, its tag and the pull secret"
        yield Problem(pod=name, text=f"{who}: image {image} cannot be pulled ({reason}: {message}); {remedy}")
    elif reason == "CrashLoopBackOff":
        last = entry.get("lastState", {}).get("terminated", {})
        text = f"{who} {_ending(pod, container, last)}, again and again"
        yield Problem(pod=name, container=container, previous=True, text=text)
    elif reason not in (*STARTING, ""):  # CreateContainerConfigError, RunContainerError and their relatives
        yield Problem(pod=name, text=f"{who} cannot start: {reason}: {message}")


def _ending(pod: Manifest, container: str, ended: Manifest) -> str:
    if ended.get("reason") == "OOMKilled":
        limit = _limit(pod, container, "memory")
        have = f"{limit}, its limit" if limit else "the node had"
        return f"was killed: it needed more memory than {have}; raise resources.limits.memory of the PodTemplate"
    code = ended.get("exitCode", "unknown")
    message = f": {ended['message'].strip()}" if ended.get("message") else ""
    return f"ended with exit code {code}{message}"


def _claim_problems(pod: Manifest, events: Sequence[Manifest]) -> Iterator[Problem]:
    """Yields why the volumes of a pod are not there yet, from events: the claims themselves we need not read."""
    for volume in pod["spec"].get("volumes", []):
        name = volume.get("persistentVolumeClaim", {}).get("claimName")
        event = _last_event(events, "PersistentVolumeClaim", name, CLAIM_EVENTS) if name else None
        if event is not None:
            yield Problem(text=f"PersistentVolumeClaim {name} is pending: {event['message']}")


def _unscheduled(pod: Manifest) -> Manifest | None:
    """Returns the condition of a pod that no node takes."""
    for condition in pod.get("status", {}).get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            found: Manifest = condition
            return found
    return None


def _statuses(pod: Manifest, *fields: str) -> Iterator[tuple[str, Manifest]]:
    """Yields the name and the status of every container."""
    for field in fields or ("initContainerStatuses", "containerStatuses"):
        for entry in pod.get("status", {}).get(field) or []:
            yield entry["name"], entry


def _states(pod: Manifest, *fields: str) -> Iterator[tuple[str, Manifest]]:
    for name, entry in _statuses(pod, *fields):
        yield name, entry.get("state", {})


def _limit(pod: Manifest, container: str, resource: str) -> str:
    for each in [*pod["spec"].get("initContainers", []), *pod["spec"].get("containers", [])]:
        if each["name"] == container:
            return str(each.get("resources", {}).get("limits", {}).get(resource, ""))
    return ""


def _last_event(
    events: Sequence[Manifest], kind: str, name: str, reasons: Sequence[str], about: str = ""
) -> Manifest | None:
    """Returns the newest event on an object, of those reasons and with that word; mere time-outs come last."""
    found = [
        each
        for each in events
        if each["involvedObject"].get("kind") == kind
        and each["involvedObject"].get("name") == name
        and each.get("reason") in reasons
        and about in each.get("message", "")
    ]
    return max(found, key=lambda each: (TIMED_OUT not in each["message"], _event_time(each)), default=None)


def _event_time(event: Manifest) -> str:
    times: list[Any] = [event.get("lastTimestamp"), event.get("eventTime"), event["metadata"].get("creationTimestamp")]
    return str(next((time for time in times if time), ""))
