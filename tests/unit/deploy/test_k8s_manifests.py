"""What the manifests of deploy/k8s/base promise, read as they stand: rendering needs kubectl (tests/deploy)."""

import json
import tomllib

import pytest

from rlhf.serving.directory import REWARD
from rlhf.serving.directory import SERVICES as SERVERS
from services.trainer.config.sections import check_entry
from services.trainer.fleet import kubernetes as endpoints
from tests.support.manifests import K8S, Document, Pod, allowed_calls, base_documents, named, parse, pods, references

BASE = base_documents()
PODS = {pod.labels["app.kubernetes.io/component"]: pod for pod in pods(BASE)}
SERVICES = [name for name, each in SERVERS.items() if not each.is_run]


def _stranger(owner: str, namespace: str, labels: dict[str, str] | None = None) -> Pod:
    """Returns a pod that is no part of the manifests; it listens on the HTTPS port."""
    return Pod(owner, labels or {}, {"containers": [{"ports": [{"containerPort": 443}]}]}, namespace)


def test_there_is_a_pod_for_every_service() -> None:
    assert set(PODS) == set(SERVERS)


@pytest.mark.parametrize("name", SERVERS)
def test_ports_are_those_that_the_service_listens_on(name: str) -> None:
    ports = {port["name"]: port["containerPort"] for port in PODS[name].spec["containers"][0]["ports"]}
    assert ports.pop("http", None) == SERVERS[name].http_port
    assert ports == {"grpc": SERVERS[name].port, "metrics": SERVERS[name].metrics_port}
    if name != "trainer":
        service = named(BASE, "Service")[name]["spec"]
        assert [port["port"] for port in service["ports"]] == [SERVERS[name].port]
        assert service["selector"].items() <= PODS[name].labels.items()


def test_http_clients_of_the_reward_service_have_an_address() -> None:
    service = named(BASE, "Service")["reward-http"]["spec"]
    assert [port["port"] for port in service["ports"]] == [REWARD.http_port]
    assert "http" in {port["name"] for port in PODS["reward"].spec["containers"][0]["ports"]}
    assert service["selector"].items() <= PODS["reward"].labels.items()


@pytest.mark.parametrize("name", SERVERS)
def test_no_container_can_become_root_or_write_to_its_image(name: str) -> None:
    pod = PODS[name].spec["securityContext"]
    assert (pod["runAsNonRoot"], pod["runAsUser"], pod["seccompProfile"]) == (True, 10001, {"type": "RuntimeDefault"})
    for container in PODS[name].containers:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


@pytest.mark.parametrize("name", SERVERS)
def test_every_container_says_what_it_needs_and_may_take(name: str) -> None:
    for container in PODS[name].containers:
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
        assert "memory" in container["resources"]["limits"]


def test_no_pod_gets_a_token_of_the_api() -> None:
    accounts = named(BASE, "ServiceAccount")
    assert not [name for name in PODS if PODS[name].spec["automountServiceAccountToken"]]
    assert [name for name in accounts if accounts[name].get("automountServiceAccountToken", True)] == ["rlhf-submit"]


def test_whoever_submits_may_do_what_the_command_does_and_nothing_else() -> None:
    rules = named(BASE, "Role")["rlhf-submit"]["rules"]
    assert {(resource, *rule["verbs"]) for rule in rules for resource in rule["resources"]} == {
        ("podtemplates", "get"),
        ("configmaps", "get", "list", "create", "delete"),
        ("services", "create", "delete"),
        ("jobs", "get", "list", "create", "delete"),
        ("pods", "list"),
        ("events", "list"),
        ("pods/log", "get"),
    }


@pytest.mark.parametrize("name", SERVICES)
def test_a_pod_may_drain_before_it_is_killed(name: str) -> None:
    config = tomllib.loads(named(BASE, "ConfigMap")[f"{name}-config"]["data"][f"{name}.toml"])
    spec = PODS[name].spec
    sleep = int(spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    assert spec["terminationGracePeriodSeconds"] >= sleep + config["server"]["drain_seconds"] + 10


@pytest.mark.parametrize("name", SERVICES)
def test_probes_ask_the_service_whether_it_serves_and_whether_it_lives(name: str) -> None:
    container, port = PODS[name].spec["containers"][0], SERVERS[name].port
    assert container["startupProbe"]["grpc"] == container["readinessProbe"]["grpc"] == {"port": port}
    assert container["livenessProbe"]["grpc"] == {"port": port, "service": "live"}


@pytest.mark.parametrize("name", SERVERS)
def test_everything_that_a_pod_refers_to_is_there(name: str) -> None:
    missing = [f"{kind} {other}" for kind, other in references(PODS[name]) if other not in named(BASE, kind)]
    assert not missing


def test_the_trainer_is_told_where_the_services_are() -> None:
    variables = {each["name"]: each.get("value", "") for each in PODS["trainer"].spec["containers"][0]["env"]}
    prefix = "RLHF_TRAINER__SERVICES__"
    assert json.loads(variables[f"{prefix}POLICY_TARGETS"]) == ["dns:///policy:50051"]
    assert named(BASE, "Service")["policy"]["spec"]["clusterIP"] == "None"  # so the name has every pod's address
    assert variables[f"{prefix}REWARD_TARGET"] == "reward:50052"
    assert variables[f"{prefix}REFERENCE_TARGET"] == "reference:50053"


@pytest.mark.parametrize("name", ["reward", "reference"])
def test_an_update_brings_a_new_pod_up_before_an_old_one_goes(name: str) -> None:
    rolling = named(BASE, "Deployment")[name]["spec"]["strategy"]["rollingUpdate"]
    assert (rolling["maxUnavailable"], rolling["maxSurge"]) == (0, 1)


def test_the_only_calls_that_policies_allow_are_the_arrows_of_the_architecture() -> None:
    assert allowed_calls(BASE, PODS.values()) == {
        ("PodTemplate/trainer", "StatefulSet/policy", 50051),
        ("PodTemplate/trainer", "Deployment/reward", 50052),
        ("PodTemplate/trainer", "Deployment/reference", 50053),
    }


def test_strangers_reach_nothing_but_prometheus_the_metrics_and_clients_the_reward_service() -> None:
    client = {"rlhf-services/reward-client": "true"}
    strangers = [
        _stranger("nobody", "default"),
        _stranger("client", "default", client),
        _stranger("client here", "rlhf", client),
        _stranger("nobody here", "rlhf"),
        _stranger("prometheus", "monitoring"),
    ]
    calls = allowed_calls(BASE, [*PODS.values(), *strangers])
    owners = {pod.owner for pod in strangers}
    assert {call for call in calls if call[0] in owners and call[1] not in owners} == {
        ("client", "Deployment/reward", 50052),
        ("client", "Deployment/reward", 8052),
        ("client here", "Deployment/reward", 50052),
        ("client here", "Deployment/reward", 8052),
        ("prometheus", "StatefulSet/policy", 9051),
        ("prometheus", "Deployment/reward", 9052),
        ("prometheus", "Deployment/reference", 9053),
        ("prometheus", "PodTemplate/trainer", 9054),
    }


def test_ranks_of_a_run_on_several_nodes_reach_one_another() -> None:
    labels = {**PODS["trainer"].labels, "batch.kubernetes.io/job-completion-index": "0"}
    ranks = [Pod(owner, labels, PODS["trainer"].spec) for owner in ("first", "second")]
    assert ("second", "first", 50054) in allowed_calls(BASE, ranks)
    assert not allowed_calls(BASE, [PODS["trainer"], ranks[0]])


def test_replicas_of_the_policy_reach_one_another_where_they_take_pushes_and_nowhere_else() -> None:
    replicas = [Pod(owner, PODS["policy"].labels, PODS["policy"].spec) for owner in ("first", "second")]
    assert allowed_calls(BASE, replicas) == {("first", "second", 50051), ("second", "first", 50051)}


def _component(name: str) -> list[Document]:
    return [each for file in sorted((K8S / "components" / name).glob("*.yaml")) for each in parse(file.read_text())]


def _targets(documents: list[Document]) -> list[str]:
    """Returns the policy's targets in a trainer's template."""
    container = named(documents, "PodTemplate")["trainer"]["template"]["spec"]["containers"][0]
    variables = {each["name"]: each["value"] for each in container["env"] if "value" in each}
    targets: list[str] = json.loads(variables["RLHF_TRAINER__SERVICES__POLICY_TARGETS"])
    return [check_entry(target) for target in targets]


def test_a_run_that_watches_its_replicas_may_read_endpoints_and_nothing_else() -> None:
    watch = _component("watch-replicas")
    assert _targets(watch) == ["kubernetes:///policy:50051"]
    assert {
        (group, resource, *rule["verbs"])
        for rule in named(watch, "Role")["watch-replicas"]["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    } == {("discovery.k8s.io", "endpointslices", "list", "watch"), ("", "endpoints", "list", "watch")}
    binding = named(watch, "RoleBinding")["watch-replicas"]
    assert binding["roleRef"]["name"] == "watch-replicas"
    assert [each["name"] for each in binding["subjects"]] == [PODS["trainer"].spec["serviceAccountName"]]
    assert named(watch, "PodTemplate")["trainer"]["template"]["spec"]["automountServiceAccountToken"]


def test_only_a_run_that_watches_its_replicas_reaches_the_api_server() -> None:
    server = Pod("api", {}, {"containers": [{"ports": [{"containerPort": 6443}]}]}, "kube-system")
    call = ("PodTemplate/trainer", "api", 6443)
    assert call not in allowed_calls(BASE, [PODS["trainer"], server])
    assert call in allowed_calls([*BASE, *_component("watch-replicas")], [PODS["trainer"], server])
    assert len(allowed_calls([*BASE, *_component("watch-replicas")], [*PODS.values(), server])) == 4


def test_serving_goes_before_training() -> None:
    classes = named(BASE, "PriorityClass")
    assert classes["rlhf-serving"]["value"] > classes["rlhf-training"]["value"]
    assert {name: PODS[name].spec["priorityClassName"] for name in PODS} == {
        **dict.fromkeys(SERVICES, "rlhf-serving"),
        "trainer": "rlhf-training",
    }


def test_certificates_name_every_host_that_a_run_calls() -> None:
    mtls = _component("mtls")
    names = {name: each["spec"]["dnsNames"] for name, each in named(mtls, "Certificate").items() if name in SERVICES}
    variables = {each["name"]: each.get("value", "") for each in PODS["trainer"].spec["containers"][0]["env"]}
    for service in ("reward", "reference"):
        host, _, _ = variables[f"RLHF_TRAINER__SERVICES__{service.upper()}_TARGET"].partition(":")
        assert host in names[service]
    # By DNS replicas would be called by address, which no certificate has.
    hosts = [target.partition(":")[0] for target in _targets(mtls)]
    assert hosts
    assert set(hosts) <= set(names["policy"])
    watched = endpoints.Service("rlhf", "policy", 50051).target("10.0.0.7", "policy-9")
    assert f"*.{watched.partition('.')[2].partition(':')[0]}" in names["policy"]
