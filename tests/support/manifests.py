"""Kubernetes manifests as data: the pods they describe, what they refer to, and which calls their policies allow."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.support.paths import ROOT

Document = dict[str, Any]

K8S = ROOT / "deploy" / "k8s"
NAMESPACE = "rlhf"


def parse(text: str) -> list[Document]:
    """Returns the documents of a YAML stream."""
    return [document for document in yaml.safe_load_all(text) if document]


def base_documents() -> list[Document]:
    """Returns deploy/k8s/base as its files have it, with the ConfigMaps that kustomize makes: needs no kubectl."""
    kustomization = yaml.safe_load((K8S / "base" / "kustomization.yaml").read_text())
    documents = [each for name in kustomization["resources"] for each in parse((K8S / "base" / name).read_text())]
    for generator in kustomization["configMapGenerator"]:
        files = {Path(name).name: (K8S / "base" / name).read_text() for name in generator.get("files", [])}
        literals = dict(literal.split("=", 1) for literal in generator.get("literals", []))
        documents.append({"kind": "ConfigMap", "metadata": {"name": generator["name"]}, "data": files | literals})
    return documents


def named(documents: Iterable[Document], kind: str) -> dict[str, Document]:
    """Returns the documents of a kind by name."""
    return {each["metadata"]["name"]: each for each in documents if each["kind"] == kind}


@dataclass(frozen=True)
class Pod:
    """A pod as a manifest describes it; `owner` is such as "Deployment/reward"."""

    owner: str
    labels: Mapping[str, str]
    spec: Mapping[str, Any]
    namespace: str = NAMESPACE

    @property
    def containers(self) -> list[dict[str, Any]]:
        """Those that run, and those that run before them."""
        return [*self.spec.get("initContainers", []), *self.spec["containers"]]

    @property
    def ports(self) -> set[int]:
        """Those that its containers listen on."""
        return {port["containerPort"] for each in self.containers for port in each.get("ports", [])}


def pods(documents: Iterable[Document]) -> Iterator[Pod]:
    """Yields the pod of every workload, and of the trainer's template."""
    for document in documents:
        template = document.get("template") or document.get("spec", {}).get("template")
        if template:
            owner = f"{document['kind']}/{document['metadata']['name']}"
            yield Pod(owner, template["metadata"]["labels"], template["spec"])


def references(pod: Pod) -> Iterator[tuple[str, str]]:
    """Yields (kind, name) of everything that a pod cannot start without."""
    yield "ServiceAccount", pod.spec["serviceAccountName"]
    yield "PriorityClass", pod.spec["priorityClassName"]
    for volume in pod.spec.get("volumes", []):
        if "configMap" in volume:
            yield "ConfigMap", volume["configMap"]["name"]
        elif "persistentVolumeClaim" in volume:
            yield "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]
        elif "secret" in volume and not volume["secret"].get("optional"):
            yield "Secret", volume["secret"]["secretName"]
    for container in pod.containers:
        for variable in container.get("env", []):
            source = variable.get("valueFrom", {})
            if "configMapKeyRef" in source:
                yield "ConfigMap", source["configMapKeyRef"]["name"]


def allowed_calls(documents: Iterable[Document], pods: Iterable[Pod]) -> set[tuple[str, str, int]]:
    """Returns (caller, called, port) for every port that NetworkPolicies let one of the pods reach on another."""
    policies = list(named(documents, "NetworkPolicy").values())
    everyone = list(pods)
    return {
        (caller.owner, called.owner, port)
        for caller in everyone
        for called in everyone
        for port in called.ports
        if caller is not called
        and _allows(policies, "Egress", caller, called, port)
        and _allows(policies, "Ingress", called, caller, port)
    }


def _allows(policies: Iterable[Document], direction: str, pod: Pod, other: Pod, port: int) -> bool:
    """Returns whether a pod's policies let it talk to another in a direction; without any, all is allowed."""
    mine = [
        each["spec"]
        for each in policies
        if pod.namespace == NAMESPACE
        and direction in each["spec"]["policyTypes"]
        and _selects(each["spec"]["podSelector"], pod.labels)
    ]
    peers = "to" if direction == "Egress" else "from"
    rules = [rule for spec in mine for rule in spec.get(direction.lower(), [])]
    return not mine or any(
        port in {each["port"] for each in rule.get("ports", [{"port": port}])}
        and (peers not in rule or any(_is_peer(peer, other) for peer in rule[peers]))
        for rule in rules
    )


def _is_peer(peer: Mapping[str, Any], pod: Pod) -> bool:
    if "ipBlock" in peer:
        return bool(peer["ipBlock"]["cidr"].endswith("/0"))  # a pod can have any address
    namespace = peer.get("namespaceSelector", {"matchLabels": {"kubernetes.io/metadata.name": NAMESPACE}})
    return _selects(namespace, {"kubernetes.io/metadata.name": pod.namespace}) and _selects(
        peer.get("podSelector", {}), pod.labels
    )


def _selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    expressions = selector.get("matchExpressions", [])
    if any(each["operator"] != "Exists" for each in expressions):
        raise ValueError(f"only the operator Exists is understood here: {expressions}")
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        each["key"] in labels for each in expressions
    )
