"""Everything in deploy/ that can be checked without running it: `make check-deploy`.

Every overlay, every component on overlay cpu-small, and the runs in jobs/ are rendered as `kubectl apply -k` would.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import kubernetes_validate
import pytest

from tests.support.manifests import K8S, Document, allowed_calls, named, parse, pods, references

pytestmark = pytest.mark.static

ROOT = K8S.parents[1]
BIN = Path(sys.executable).parent
CHECKOV = ROOT / "build" / "checkov" / "bin" / "checkov"
OLDEST = "1.29"
"""1.28 has all that the manifests use, but its schema asks every rule of a Job's failure policy for onPodConditions."""
OVERLAYS = ("cpu-small", "gpu", "gpu-multinode")
COMPONENTS = {
    "monitoring": ["monitoring"],
    "autoscaling": ["autoscaling"],
    "postgres": ["postgres"],
    "mtls": ["mtls"],
    "watch-replicas": ["watch-replicas"],
    "gpu": ["gpu"],
    "everything": ["gpu", "reward-model", "monitoring", "autoscaling", "postgres", "mtls", "watch-replicas"],
}
JOBS = ("single", "multinode")
CUSTOM_KINDS: dict[str, tuple[set[str], set[str]]] = {
    "PodMonitor": ({"selector", "podMetricsEndpoints"}, {"jobLabel", "namespaceSelector", "podTargetLabels"}),
    "PrometheusRule": ({"groups"}, set()),
    "Issuer": (set(), {"selfSigned", "ca"}),
    "Certificate": (
        {"secretName", "issuerRef"},
        {"commonName", "dnsNames", "duration", "isCA", "privateKey", "renewBefore", "usages"},
    ),
}
"""Kinds of the Prometheus operator and cert-manager: fields of their specs that must be there, and others that may."""


def _kustomize(folder: Path) -> str:
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _run(*command: str | Path) -> None:
    """Runs a command at the root, with the commands of this environment in reach. Fails with what it printed."""
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Files of everything rendered, by what it is; all in one folder."""
    texts = {f"overlay {name}": _kustomize(K8S / "overlays" / name) for name in OVERLAYS}
    texts |= {f"job {name}": _kustomize(K8S / "jobs" / name) for name in JOBS}
    for title, components in COMPONENTS.items():
        folder = tmp_path_factory.mktemp("component")
        paths = [os.path.relpath((K8S / "components" / name).resolve(), folder.resolve()) for name in components]
        base = os.path.relpath((K8S / "overlays" / "cpu-small").resolve(), folder.resolve())
        lines = [
            "apiVersion: kustomize.config.k8s.io/v1beta1",
            "kind: Kustomization",
            f"resources: [{base}]",
            f"components: [{', '.join(paths)}]",
        ]
        (folder / "kustomization.yaml").write_text("\n".join(lines))
        texts[f"component {title}"] = _kustomize(folder)
    folder = tmp_path_factory.mktemp("rendered")
    files = {title: folder / f"{title.replace(' ', '-')}.yaml" for title in texts}
    for title, text in texts.items():
        files[title].write_text(text)
    return files


def _documents(rendered: Mapping[str, Path]) -> list[tuple[str, Document]]:
    return [(title, document) for title, file in rendered.items() for document in parse(file.read_text())]


def test_every_component_and_job_is_rendered() -> None:
    assert {path.name for path in (K8S / "components").iterdir()} == set(COMPONENTS["everything"])
    assert {path.name for path in (K8S / "overlays").iterdir()} == set(OVERLAYS)
    assert {path.name for path in (K8S / "jobs").iterdir() if path.is_dir()} == set(JOBS)


@pytest.mark.parametrize("version", [OLDEST, kubernetes_validate.latest_version()])
def test_every_object_fits_the_api_of_kubernetes(rendered: Mapping[str, Path], version: str) -> None:
    faults = []
    # Most objects are in several of what was rendered, just alike.
    different = {json.dumps(document): (title, document) for title, document in _documents(rendered)}
    for title, document in different.values():
        if document["kind"] in CUSTOM_KINDS:
            continue
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
            faults.append(f"{title}: {document['kind']} {document['metadata']['name']}: {error.message}")
    assert not faults, "\n".join(faults)


def test_every_object_of_other_kinds_has_the_fields_that_their_makers_document(rendered: Mapping[str, Path]) -> None:
    found = set()
    for title, document in _documents(rendered):
        if document["kind"] in CUSTOM_KINDS:
            found.add(document["kind"])
            needed, others = CUSTOM_KINDS[document["kind"]]
            fields = set(document["spec"])
            assert needed <= fields <= needed | others, f"{title}: {document['kind']} {document['metadata']['name']}"
    assert found == set(CUSTOM_KINDS)


def test_nothing_refers_to_what_is_not_there(rendered: Mapping[str, Path]) -> None:
    made_by_hand = {("Secret", "postgres")}
    for title, file in rendered.items():
        if title.startswith("job "):
            continue  # The accounts and volumes of a run are its overlay's.
        documents = parse(file.read_text())
        there = {(each["kind"], each["metadata"]["name"]) for each in documents} | made_by_hand
        there |= {("Secret", each["spec"]["secretName"]) for each in named(documents, "Certificate").values()}
        for pod in pods(documents):
            assert set(references(pod)) <= there, f"{title}: {pod.owner}"


def test_no_component_allows_a_call_that_the_architecture_has_not(rendered: Mapping[str, Path]) -> None:
    for title, file in rendered.items():
        documents = parse(file.read_text())
        if title.startswith("job "):
            continue
        called = {(caller, port) for caller, _, port in allowed_calls(documents, pods(documents))}
        assert called == {("PodTemplate/trainer", port) for port in (50051, 50052, 50053)}, title


def test_only_runs_that_watch_their_replicas_get_a_token_of_the_api(rendered: Mapping[str, Path]) -> None:
    for title, file in rendered.items():
        for pod in pods(parse(file.read_text())):
            variables = [each for container in pod.containers for each in container.get("env", [])]
            watches = any("kubernetes:///" in each.get("value", "") for each in variables)
            assert pod.spec["automountServiceAccountToken"] == watches, f"{title}: {pod.owner}"


def test_autoscaled_services_have_no_number_of_pods_of_their_own(rendered: Mapping[str, Path]) -> None:
    for title, file in rendered.items():
        documents = parse(file.read_text())
        for scaler in named(documents, "HorizontalPodAutoscaler").values():
            target = named(documents, "Deployment")[scaler["spec"]["scaleTargetRef"]["name"]]
            assert "replicas" not in target["spec"], title


def test_the_committed_runs_are_what_submitting_makes(tmp_path: Path) -> None:
    _run("scripts/k8s-jobs", tmp_path)
    for name in JOBS:
        committed, made = K8S / "jobs" / name / "run.yaml", tmp_path / name / "run.yaml"
        assert committed.read_text() == made.read_text(), "make k8s-jobs writes them anew"


def test_checkov_finds_nothing_that_is_not_explained(rendered: Mapping[str, Path]) -> None:
    assert CHECKOV.exists(), "make check-deploy installs checkov in an environment of its own"
    folder = next(iter(rendered.values())).parent
    _run(CHECKOV, "--config-file", K8S / ".checkov.yaml", "--directory", folder)


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    _run("hadolint", "deploy/docker/Dockerfile")


def test_prometheus_takes_the_rules_and_they_fire_as_their_tests_say() -> None:
    monitoring = ROOT / "deploy" / "monitoring"
    rules, tests = sorted((monitoring / "rules").glob("*.yaml")), sorted((monitoring / "tests").glob("*.yaml"))
    assert rules
    assert tests
    _run("promtool", "check", "rules", *rules)
    _run("promtool", "test", "rules", *tests)
