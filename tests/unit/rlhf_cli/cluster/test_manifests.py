"""The objects of a run, against the template that is deployed."""

import copy
from typing import Any

import pytest
import yaml

from rlhf_cli.cluster.manifests import run_manifests, spec_of, template_in, to_yaml
from rlhf_cli.cluster.run_spec import RunSpec
from rlhf_cli.errors import ClusterError
from tests.support.paths import ROOT

TRAINER_YAML = ROOT / "deploy" / "k8s" / "base" / "trainer.yaml"

TEMPLATE: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "PodTemplate",
    "metadata": {"name": "trainer"},
    "template": {
        "metadata": {"creationTimestamp": None, "labels": {"team": "a"}},
        "spec": {
            "terminationGracePeriodSeconds": 900,
            "initContainers": [{"name": "fetch-model", "image": "trainer:1"}, {"name": "other", "image": "busybox"}],
            "containers": [{"name": "sidecar", "image": "proxy:1"}, {"name": "trainer", "image": "trainer:1"}],
        },
    },
}
TRAIN = ["train", "ppo", "--config", "/etc/rlhf/run/run.toml", "--run_dir", "/runs/first", "--resume"]


def spec(**changes: Any) -> RunSpec:
    """A PPO run named "first"."""
    return RunSpec(**{"name": "first", "algorithm": "ppo", "toml": 'a = 1\nb = "x"\n', "files": {}, **changes})


def made(template: dict[str, Any] = TEMPLATE, **changes: Any) -> dict[str, dict[str, Any]]:
    """The objects of a run, by kind."""
    return {each["kind"]: each for each in run_manifests(spec(**changes), template)}


def trainer(job: dict[str, Any]) -> dict[str, Any]:
    """The container that trains."""
    containers = job["spec"]["template"]["spec"]["containers"]
    return next(each for each in containers if each["name"] == "trainer")


def with_gpus(count: int) -> dict[str, Any]:
    """The template of a trainer with GPUs."""
    template = copy.deepcopy(TEMPLATE)
    template["template"]["spec"]["containers"][1]["resources"] = {"limits": {"nvidia.com/gpu": str(count)}}
    return template


def test_a_run_on_one_node_is_a_config_map_and_a_job() -> None:
    objects = made()
    assert list(objects) == ["ConfigMap", "Job"]
    assert {each["metadata"]["name"] for each in objects.values()} == {"run-first"}
    assert {each["metadata"]["labels"]["rlhf-services/run"] for each in objects.values()} == {"first"}
    job = objects["Job"]["spec"]
    assert (job["completions"], job["parallelism"], job["backoffLimit"]) == (1, 1, 6)
    assert "completionMode" not in job
    pod = job["template"]
    assert pod["metadata"] == {
        "labels": {
            "team": "a",
            "app.kubernetes.io/name": "rlhf-services",
            "app.kubernetes.io/component": "trainer",
            "rlhf-services/run": "first",
        }
    }
    assert pod["spec"]["restartPolicy"] == "Never"
    assert pod["spec"]["terminationGracePeriodSeconds"] == 900
    assert pod["spec"]["volumes"] == [{"name": "run-config", "configMap": {"name": "run-first"}}]
    assert trainer(objects["Job"]) == {
        "name": "trainer",
        "image": "trainer:1",
        "args": TRAIN,
        "workingDir": "/etc/rlhf/run",
        "volumeMounts": [{"name": "run-config", "mountPath": "/etc/rlhf/run", "readOnly": True}],
    }


def test_a_run_on_several_nodes_meets_at_the_pod_with_index_0() -> None:
    objects = made(nodes=2, processes_per_node=4)
    assert list(objects) == ["ConfigMap", "Service", "Job"]
    service = objects["Service"]["spec"]
    assert (service["clusterIP"], service["publishNotReadyAddresses"]) == ("None", True)
    assert service["selector"] == {"rlhf-services/run": "first"}
    job = objects["Job"]["spec"]
    assert (job["completionMode"], job["completions"], job["parallelism"], job["backoffLimit"]) == ("Indexed", 2, 2, 12)
    # Pod INDEX is then run-first-INDEX.run-first, by the Service of that name.
    assert job["template"]["spec"]["subdomain"] == "run-first" == objects["Service"]["metadata"]["name"]
    assert trainer(objects["Job"])["command"] == ["tini", "--", "torchrun"]
    assert trainer(objects["Job"])["args"] == [
        *("--nnodes", "2", "--nproc-per-node", "4", "--rdzv-backend", "c10d"),
        *("--rdzv-endpoint", "run-first-0.run-first:29500", "--rdzv-id", "run-first"),
        *("--rdzv-conf", "join_timeout=1800,read_timeout=300", "--max-restarts", "0"),
        *("--shutdown-timeout", "895", "--no-python", "rlhf", *TRAIN),
    ]


def test_torchrun_takes_these_flags() -> None:
    from torch.distributed.run import get_args_parser

    job = made(nodes=2)["Job"]
    parsed = get_args_parser().parse_args(trainer(job)["args"])
    assert (parsed.nnodes, parsed.rdzv_backend, parsed.rdzv_id, parsed.no_python) == ("2", "c10d", "run-first", True)
    assert (parsed.shutdown_timeout, parsed.training_script) == (895, "rlhf")
    assert parsed.training_script_args == TRAIN


def test_ranks_are_as_many_as_gpus_if_none_are_asked_for() -> None:
    assert trainer(made()["Job"])["args"] == TRAIN
    arguments = trainer(made(with_gpus(8))["Job"])["args"]
    assert arguments[:5] == ["--nnodes", "1", "--nproc-per-node", "8", "--standalone"]
    assert trainer(made(with_gpus(8), processes_per_node=1)["Job"])["args"] == TRAIN


def test_a_wrong_configuration_and_an_eviction_are_no_retries() -> None:
    rules = made()["Job"]["spec"]["podFailurePolicy"]["rules"]
    assert [rule["action"] for rule in rules] == ["Ignore", "FailJob"]
    assert rules[1]["onExitCodes"] == {"containerName": "trainer", "operator": "In", "values": [2]}


def test_another_image_is_taken_wherever_the_trainers_was() -> None:
    pod = made(image="trainer:2")["Job"]["spec"]["template"]["spec"]
    assert [each["image"] for each in pod["initContainers"]] == ["trainer:2", "busybox"]
    assert [each["image"] for each in pod["containers"]] == ["proxy:1", "trainer:2"]


def test_the_template_is_left_as_it_was() -> None:
    before = copy.deepcopy(TEMPLATE)
    made(nodes=3, image="trainer:2")
    assert before == TEMPLATE


def test_a_template_without_the_trainer_is_refused() -> None:
    template = copy.deepcopy(TEMPLATE)
    template["template"]["spec"]["containers"].pop()
    with pytest.raises(ClusterError, match="no container named 'trainer'"):
        made(template)


def test_the_yaml_reads_as_the_same_objects_and_shows_texts_as_they_are() -> None:
    objects = run_manifests(spec(files={"prompts.jsonl": b'{"prompt": "H\xc3\xa9"}\n'}), TEMPLATE)
    text = to_yaml(objects)
    assert list(yaml.safe_load_all(text)) == objects
    assert '  run.toml: |\n    a = 1\n    b = "x"\n  prompts.jsonl: |\n    {"prompt": "Hé"}\n' in text


def test_the_deployed_template_is_found_among_the_other_objects_of_its_file() -> None:
    template = template_in(TRAINER_YAML.read_text(), "trainer.yaml")
    container = trainer(made(template)["Job"])
    assert container["args"] == TRAIN
    assert {"name": "runs", "mountPath": "/runs"} in container["volumeMounts"]


def test_a_file_without_the_template_is_refused() -> None:
    with pytest.raises(ClusterError, match=r"x\.yaml: holds no PodTemplate named 'trainer'"):
        template_in("kind: Job\n", "x.yaml")
    with pytest.raises(ClusterError, match=r"x\.yaml: cannot be read as YAML"):
        template_in("a: [", "x.yaml")


def test_a_config_map_of_somebody_else_is_refused() -> None:
    manifest = {"metadata": {"name": "run-x", "labels": {"rlhf-services/run": "x"}}, "data": {"run.toml": ""}}
    with pytest.raises(ClusterError, match=r"ConfigMap run-x has no rlhf-services/algorithm"):
        spec_of(manifest)
