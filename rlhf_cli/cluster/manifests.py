"""The objects of a run: a ConfigMap with its configuration, a Job, and for several nodes a headless Service.

The pods come from the PodTemplate of the deployment, so that what a trainer needs (image, volumes, resources, security)
stands in one place; here is added only what differs between runs.
"""

import base64
import copy
from typing import Any, TypeAlias

from rlhf_cli.cluster.run_spec import CONFIG_KEY, RunSpec, run_dir
from rlhf_cli.errors import ClusterError, missing_extra

Manifest: TypeAlias = dict[str, Any]
"""A Kubernetes object as JSON has it."""

RUN_LABEL = "rlhf-services/run"
ALGORITHM_NOTE = "rlhf-services/algorithm"
NODES_NOTE = "rlhf-services/nodes"
PROCESSES_NOTE = "rlhf-services/processes-per-node"
IMAGE_NOTE = "rlhf-services/image"

TRAINER = "trainer"
"""The container that trains, and the PodTemplate."""
CONFIG_VOLUME = "run-config"
CONFIG_FOLDER = "/etc/rlhf/run"
RENDEZVOUS_PORT = 29500
RENDEZVOUS_LIMITS = "join_timeout=1800,read_timeout=300"
"""Seconds until all nodes have to be there (images are pulled meanwhile), and for one question to the first one."""
RETRIES = 6
"""How often a run may be started anew before the Job fails. Each start goes on from the last checkpoint."""
EXIT_USAGE = 2
"""The exit code of `rlhf train` for a wrong configuration, which no new start mends."""
DEFAULT_GRACE_SECONDS = 30
SAVING_MARGIN_SECONDS = 5


def run_manifests(spec: RunSpec, template: Manifest) -> list[Manifest]:
    """Returns the objects of a run in the order of their creation."""
    objects = [config_map(spec)]
    if spec.nodes > 1:
        objects.append(_service(spec))
    return [*objects, job(spec, template)]


def config_map(spec: RunSpec) -> Manifest:
    """Returns what a run is made from again when it is resumed."""
    notes = {ALGORITHM_NOTE: spec.algorithm, NODES_NOTE: str(spec.nodes)}
    if spec.processes_per_node is not None:
        notes[PROCESSES_NOTE] = str(spec.processes_per_node)
    if spec.image is not None:
        notes[IMAGE_NOTE] = spec.image
    texts, others = {CONFIG_KEY: spec.toml}, {}
    for name, content in spec.files.items():
        try:
            texts[name] = content.decode("utf-8")
        except UnicodeDecodeError:
            others[name] = base64.b64encode(content).decode("ascii")
    manifest: Manifest = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {**_metadata(spec), "annotations": notes},
        "immutable": True,
        "data": texts,
    }
    return {**manifest, "binaryData": others} if others else manifest


def spec_of(manifest: Manifest) -> RunSpec:
    """Returns the run of a ConfigMap. Raises: ClusterError if it is none of ours."""
    metadata, notes = manifest["metadata"], manifest["metadata"].get("annotations", {})
    texts = dict(manifest.get("data", {}))
    missing = [key for key, there in ((CONFIG_KEY, texts), (ALGORITHM_NOTE, notes)) if key not in there]
    if missing:
        raise ClusterError(f"ConfigMap {metadata['name']} has no {missing[0]}, so it was not made by `rlhf submit`")
    files = {name: text.encode() for name, text in texts.items() if name != CONFIG_KEY}
    files |= {name: base64.b64decode(content) for name, content in manifest.get("binaryData", {}).items()}
    return RunSpec(
        name=metadata["labels"][RUN_LABEL],
        algorithm=notes[ALGORITHM_NOTE],
        toml=texts[CONFIG_KEY],
        files=files,
        nodes=int(notes.get(NODES_NOTE, 1)),
        processes_per_node=int(notes[PROCESSES_NOTE]) if PROCESSES_NOTE in notes else None,
        image=notes.get(IMAGE_NOTE),
    )


def job(spec: RunSpec, template: Manifest) -> Manifest:
    """Returns the Job: one pod, or as many as nodes with an index each, retried from the last checkpoint."""
    indexed = {"completionMode": "Indexed"} if spec.nodes > 1 else {}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _metadata(spec),
        "spec": {
            **indexed,
            "completions": spec.nodes,
            "parallelism": spec.nodes,
            # When one of several nodes fails, all of them do.
            "backoffLimit": RETRIES * spec.nodes,
            "podFailurePolicy": {
                "rules": [
                    {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                    {
                        "action": "FailJob",
                        "onExitCodes": {"containerName": TRAINER, "operator": "In", "values": [EXIT_USAGE]},
                    },
                ]
            },
            "template": _pod(spec, template),
        },
    }


def _metadata(spec: RunSpec) -> Manifest:
    labels = {
        "app.kubernetes.io/name": "rlhf-services",
        "app.kubernetes.io/component": TRAINER,
        RUN_LABEL: spec.name,
    }
    return {"name": spec.object_name, "labels": labels}


def _service(spec: RunSpec) -> Manifest:
    """Returns what gives every pod a host name of its own, also before it is ready: the nodes meet while they start."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(spec),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {RUN_LABEL: spec.name},
            "ports": [{"name": "rendezvous", "port": RENDEZVOUS_PORT}],
        },
    }


def _pod(spec: RunSpec, template: Manifest) -> Manifest:
    """Returns the template with the run's configuration, command and labels."""
    pod: Manifest = copy.deepcopy(template["template"])
    metadata = pod.setdefault("metadata", {})
    metadata.pop("creationTimestamp", None)  # a null, when the template comes from a cluster
    metadata["labels"] = {**metadata.get("labels", {}), **_metadata(spec)["labels"]}
    inner = pod["spec"]
    container = _trainer_container(inner)
    _replace_image(inner, container, spec.image)
    limits = container.get("resources", {}).get("limits", {})
    ranks = spec.processes_per_node or int(limits.get("nvidia.com/gpu", 0)) or 1
    arguments = _train_arguments(spec)
    if spec.nodes * ranks > 1:
        grace = inner.get("terminationGracePeriodSeconds", DEFAULT_GRACE_SECONDS)
        container["command"] = ["tini", "--", "torchrun"]
        container["args"] = [*_torchrun_flags(spec, ranks, grace), "--no-python", "rlhf", *arguments]
    else:
        container["args"] = arguments
    container["workingDir"] = CONFIG_FOLDER
    mount = {"name": CONFIG_VOLUME, "mountPath": CONFIG_FOLDER, "readOnly": True}
    container["volumeMounts"] = [*container.get("volumeMounts", []), mount]
    inner["volumes"] = [*inner.get("volumes", []), {"name": CONFIG_VOLUME, "configMap": {"name": spec.object_name}}]
    # A failed pod stays with its log; the Job makes a new one.
    inner["restartPolicy"] = "Never"
    if spec.nodes > 1:
        inner["subdomain"] = spec.object_name
    return pod


def _trainer_container(pod_spec: Manifest) -> Manifest:
    for container in pod_spec["containers"]:
        if container["name"] == TRAINER:
            found: Manifest = container
            return found
    raise ClusterError(f"the PodTemplate has no container named '{TRAINER}'; apply an overlay of deploy/k8s again")


def _replace_image(pod_spec: Manifest, trainer: Manifest, image: str | None) -> None:
    """Replaces the trainer's image, also where an init container uses the same one."""
    if image is None:
        return
    old = trainer.get("image")
    for container in [*pod_spec.get("initContainers", []), *pod_spec["containers"]]:
        if container is trainer or container.get("image") == old:
            container["image"] = image


def _train_arguments(spec: RunSpec) -> list[str]:
    """Returns what stands after `rlhf`. --resume starts a run that has nothing to go on from."""
    config = f"{CONFIG_FOLDER}/{CONFIG_KEY}"
    return ["train", spec.algorithm, "--config", config, "--run_dir", str(run_dir(spec.name)), "--resume"]


def _torchrun_flags(spec: RunSpec, ranks: int, grace_seconds: int) -> list[str]:
    """Returns how the ranks find one another.

    The rendezvous orders nodes by their host names, so that the first rank is in the pod with index 0. No rank is
    restarted inside its pod: the pods fail together, and the Job starts them anew.
    """
    meeting = ["--standalone"]
    if spec.nodes > 1:
        endpoint = f"{spec.object_name}-0.{spec.object_name}:{RENDEZVOUS_PORT}"
        meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", spec.object_name]
        meeting += ["--rdzv-conf", RENDEZVOUS_LIMITS]
    saving = max(grace_seconds - SAVING_MARGIN_SECONDS, 1)
    sizes = ["--nnodes", str(spec.nodes), "--nproc-per-node", str(ranks)]
    return [*sizes, *meeting, "--max-restarts", "0", "--shutdown-timeout", str(saving)]


try:
    import yaml
except ImportError as error:
    raise missing_extra(error) from None


def to_yaml(manifests: list[Manifest]) -> str:
    """Returns manifests as one YAML stream, texts of several lines as blocks."""
    return yaml.dump_all(manifests, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


def template_in(text: str, source: str) -> Manifest:
    """Returns the trainer's PodTemplate in a YAML stream. Raises: ClusterError if there is none."""
    try:
        objects = [each for each in yaml.safe_load_all(text) if isinstance(each, dict)]
    except yaml.YAMLError as error:
        raise ClusterError(f"{source}: cannot be read as YAML: {error}") from None
    for each in objects:
        if each.get("kind") == "PodTemplate" and each.get("metadata", {}).get("name") == TRAINER:
            return each
    raise ClusterError(f"{source}: holds no PodTemplate named '{TRAINER}'; take deploy/k8s/base/trainer.yaml")


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, and indents lists, as manifests are written by hand."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)
