"""The watcher against a mock of the Kubernetes API, in each of the forms that the API has had."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from kmock import KubernetesEmulator

from rlhf.errors import ConfigError
from services.trainer.fleet import kubernetes as kubernetes_watch
from services.trainer.fleet.discovery import Discovery
from services.trainer.fleet.kubernetes import KubernetesSource
from tests.support.fake_kubernetes import KUBECONFIG

V1 = "/apis/discovery.k8s.io/v1/namespaces/rlhf/endpointslices"
V1BETA1 = "/apis/discovery.k8s.io/v1beta1/namespaces/rlhf/endpointslices"
CORE = "/api/v1/namespaces/rlhf/endpoints"
ENTRY = "kubernetes:///rlhf/policy:50051"


def endpoint(index: int, *, hostname: str = "", **conditions: bool) -> dict[str, Any]:
    """Returns the endpoint of pod number `index`."""
    named = {"hostname": hostname} if hostname else {}
    reference = {"kind": "Pod", "name": f"policy-{index}", "uid": f"uid-{index}"}
    return {"addresses": [f"10.0.0.{index}"], "conditions": conditions, "targetRef": reference, **named}


def pods(count: int) -> list[dict[str, Any]]:
    """Returns the endpoints of a StatefulSet's pods."""
    return [endpoint(index, hostname=f"policy-{index}", ready=True) for index in range(count)]


def names(*indices: int) -> set[str]:
    """Returns the targets of a StatefulSet's pods."""
    return {f"policy-{index}.policy.rlhf.svc:50051" for index in indices}


def slice_of(
    *endpoints: dict[str, Any],
    name: str = "policy-1",
    service: str = "policy",
    family: str = "IPv4",
    version: str = "1",
) -> dict[str, Any]:
    """Returns an EndpointSlice."""
    labels = {"kubernetes.io/service-name": service}
    metadata = {"name": name, "namespace": "rlhf", "labels": labels, "resourceVersion": version}
    return {"metadata": metadata, "addressType": family, "endpoints": list(endpoints)}


def endpoints_of(*ready: str, not_ready: tuple[str, ...] = (), name: str = "policy") -> dict[str, Any]:
    """Returns an Endpoints object with the pods of these hostnames."""
    subset = {
        "addresses": [{"ip": f"10.0.1.{index}", "hostname": host} for index, host in enumerate(ready)],
        "notReadyAddresses": [{"ip": f"10.0.2.{index}", "hostname": host} for index, host in enumerate(not_ready)],
    }
    metadata = {"name": name, "namespace": "rlhf", "resourceVersion": "1"}
    return {"metadata": metadata, "subsets": [subset]}


class Watched:
    """What the source answers, one after another, and what is reported."""

    def __init__(self, answers: AsyncIterator[frozenset[str]], reports: list[str]) -> None:
        self.reports = reports
        self._answers = answers

    async def next(self) -> set[str]:
        async with asyncio.timeout(10):
            return set(await anext(self._answers))

    async def until(self, expected: set[str]) -> None:
        while (answer := await self.next()) != expected:
            assert answer is not None


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that is asked again is waited for as long as in life."""
    monkeypatch.setattr(kubernetes_watch, "FIRST_WAIT_SECONDS", 0.01)


@pytest.fixture
def kubeconfig(kmock: KubernetesEmulator, tmp_path: Path) -> Path:
    """The way to the mock."""
    file = tmp_path / "kubeconfig"
    write_kubeconfig(file, str(kmock.url).rstrip("/"))
    return file


def write_kubeconfig(file: Path, url: str, namespace: str = "default") -> None:
    """Writes the way to a cluster, and the namespace that is meant there."""
    text = KUBECONFIG.format(url=url)
    file.write_text(text.replace("cluster: fake,", f"cluster: fake, namespace: {namespace},"))


@asynccontextmanager
async def watching(kubeconfig: Path, entry: str = ENTRY) -> AsyncIterator[Watched]:
    reports: list[str] = []
    discovery = Discovery([KubernetesSource(entry, kubeconfig=kubeconfig)], reports.append)
    async with aclosing(discovery.watch()) as answers:
        yield Watched(answers, reports)


async def put(kmock: KubernetesEmulator, path: str, found: dict[str, Any]) -> None:
    """Creates an object, or changes it."""
    kind, name = path.rsplit("/", 1)[1], found["metadata"]["name"]
    known = {(resource.plural, each) for resource, _, each in kmock.objects}
    if (kind, name) in known:
        response = await kmock.patch(f"{path}/{name}", json=found)
    else:
        response = await kmock.post(path, json=found)
    assert response.status == 200, await response.text()


@pytest.mark.parametrize("path", [V1, V1BETA1])
async def test_replicas_that_come_and_go_are_seen(kmock: KubernetesEmulator, kubeconfig: Path, path: str):
    await put(kmock, path, slice_of(*pods(1)))
    async with watching(kubeconfig) as watched:
        assert await watched.next() == names(0)
        await put(kmock, path, slice_of(*pods(3)))
        assert await watched.next() == names(0, 1, 2)
        await put(kmock, path, slice_of(*pods(2)))
        assert await watched.next() == names(0, 1)
        assert watched.reports == []


async def test_clusters_without_slices_have_endpoints(kmock: KubernetesEmulator, kubeconfig: Path):
    await put(kmock, CORE, endpoints_of("policy-0"))
    await put(kmock, CORE, endpoints_of("reward-0", name="reward"))
    async with watching(kubeconfig) as watched:
        assert await watched.next() == names(0)
        await put(kmock, CORE, endpoints_of("policy-0", not_ready=("policy-1", "policy-2")))
        assert await watched.next() == names(0, 1, 2)
        await put(kmock, CORE, endpoints_of("policy-0", "policy-1"))
        assert await watched.next() == names(0, 1)
    asked = [(request.url.path, dict(request.url.query)) for request in kmock["get"][:4]]
    assert [path for path, _ in asked] == [V1, V1BETA1, CORE, CORE]
    assert asked[0][1] == {"labelSelector": "kubernetes.io/service-name=policy"}
    assert asked[2][1] == {"fieldSelector": "metadata.name=policy"}
    assert asked[3][1]["watch"] == "true"


async def test_what_terminates_is_left_out_and_what_is_not_ready_stays(kmock: KubernetesEmulator, kubeconfig: Path):
    leaving = endpoint(1, hostname="policy-1", ready=False, serving=True, terminating=True)
    starting = endpoint(2, hostname="policy-2", ready=False, serving=False, terminating=False)
    await put(kmock, V1, slice_of(*pods(1), leaving, starting))
    async with watching(kubeconfig) as watched:
        assert await watched.next() == names(0, 2)


async def test_all_slices_of_the_service_count_and_no_others(kmock: KubernetesEmulator, kubeconfig: Path):
    await put(kmock, V1, slice_of(*pods(1), name="policy-a"))
    await put(kmock, V1, slice_of(*pods(3)[1:], name="policy-b"))
    await put(kmock, V1, slice_of(endpoint(9), name="reward-a", service="reward"))
    async with watching(kubeconfig) as watched:
        assert await watched.next() == names(0, 1, 2)
        await kmock.delete(f"{V1}/policy-a")
        assert await watched.next() == names(1, 2)
        await put(kmock, V1, slice_of(name="policy-b", service="other"))  # its label was changed
        assert await watched.next() == set()
    assert watched.reports == [f"services.policy_targets: {ENTRY} has no replica just now"]


async def test_pods_without_names_are_called_by_address_and_each_once(kmock: KubernetesEmulator, kubeconfig: Path):
    sixes = [{**endpoint(index), "addresses": [f"fd00::{index}"]} for index in (0, 1, 2)]
    await put(kmock, V1, slice_of(*sixes, name="policy-a", family="IPv6"))
    await put(kmock, V1, slice_of(endpoint(0), endpoint(1), name="policy-b"))
    async with watching(kubeconfig) as watched:
        # Pods 0 and 1 have addresses of both families, pod 2 has one of IPv6 alone.
        assert await watched.next() == {"10.0.0.0:50051", "10.0.0.1:50051", "[fd00::2]:50051"}


async def test_the_namespace_is_that_of_the_context_unless_it_is_named(kmock: KubernetesEmulator, kubeconfig: Path):
    await put(kmock, V1.replace("/rlhf/", "/default/"), slice_of(endpoint(7)))
    async with watching(kubeconfig, "kubernetes:///policy:50051") as watched:
        assert await watched.next() == {"10.0.0.7:50051"}
    write_kubeconfig(kubeconfig, str(kmock.url).rstrip("/"), namespace="rlhf")
    await put(kmock, V1, slice_of(endpoint(8), name="policy-2"))
    async with watching(kubeconfig, "kubernetes:///policy:50051") as watched:
        assert await watched.next() == {"10.0.0.8:50051"}


def listed(*slices: dict[str, Any], version: str) -> dict[str, Any]:
    return {"metadata": {"resourceVersion": version}, "items": list(slices)}


def event(kind: str, found: dict[str, Any]) -> dict[str, Any]:
    return {"type": kind, "object": found}


def watches(kmock: KubernetesEmulator) -> list[str]:
    """Returns from where each watch went on."""
    return [request.params["resourceVersion"] for request in kmock["get"] if "watch" in request.params]


async def test_a_watch_that_ends_goes_on_where_it_was_without_listing(kmock: KubernetesEmulator, kubeconfig: Path):
    lists = kmock["list", V1] << listed(slice_of(*pods(1)), version="10")
    part = json.dumps(event("DELETED", slice_of(version="13"))).encode()[:40]
    bookmark = event("BOOKMARK", {"metadata": {"resourceVersion": "12"}})
    kmock["watch", V1][:1] << (event("MODIFIED", slice_of(*pods(3), version="11")), bookmark, part)
    kmock["watch", V1] << (event("MODIFIED", slice_of(*pods(2), version="14")), ...)
    async with watching(kubeconfig) as watched:
        await watched.until(names(0, 1, 2))
        await watched.until(names(0, 1))
        assert watched.reports == []
    assert watches(kmock) == ["10", "12"]
    assert len(lists) == 1


@pytest.mark.parametrize("way", ["status", "event"])
async def test_changes_that_the_api_has_forgotten_are_listed(kmock: KubernetesEmulator, kubeconfig: Path, way: str):
    kmock["list", V1][:1] << listed(slice_of(*pods(1)), version="10")
    kmock["list", V1] << listed(slice_of(*pods(3)), version="500")
    gone = {"kind": "Status", "code": 410, "message": "too old resource version: 10 (400)"}
    first = kmock["watch", V1][:1]
    if way == "status":
        first << 410 << gone
    else:
        first << (event("ERROR", gone),)
    kmock["watch", V1] << (b"", ...)  # open, and silent
    async with watching(kubeconfig) as watched:
        await watched.until(names(0, 1, 2))
        assert watched.reports == []
    assert watches(kmock) == ["10", "500"]


async def test_who_may_not_watch_is_told_which_role_is_missing(kmock: KubernetesEmulator, kubeconfig: Path):
    message = 'endpointslices.discovery.k8s.io is forbidden: User "system:serviceaccount:rlhf:trainer" cannot list'
    kmock["list", V1] << 403 << {"kind": "Status", "code": 403, "message": message}
    async with watching(kubeconfig) as watched:
        with pytest.raises(ConfigError) as raised:
            await watched.next()
    assert str(raised.value) == (
        f"services.policy_targets: {ENTRY} may not be watched: {message}; give the run's service account the Role "
        "'watch-replicas' of deploy/k8s/components/watch-replicas in namespace rlhf, or write dns:///policy:50051, "
        "which needs no access to the API"
    )


async def test_an_api_that_is_away_for_a_while_changes_nothing(kmock: KubernetesEmulator, kubeconfig: Path):
    kmock["list", V1][:1] << listed(slice_of(*pods(2)), version="10")
    kmock["list", V1][1:3] << 503 << {"message": "etcd is away"}
    kmock["list", V1] << listed(slice_of(*pods(3)), version="20")
    kmock["watch", V1][:1] << (event("MODIFIED", slice_of(*pods(1), version="11")),)
    kmock["watch", V1][1:2] << 403 << {"message": "no longer"}
    kmock["watch", V1] << (b"", ...)  # open, and silent
    async with watching(kubeconfig) as watched:
        await watched.until(names(0))
        await watched.until(names(0, 1, 2))
    assert watched.reports == [
        f"services.policy_targets: {ENTRY} has no answer (the cluster answers 403: no longer); its last answer stays, "
        "1 replica",
        f"services.policy_targets: {ENTRY} answers again, with 3 replicas",
    ]


async def test_a_cluster_that_cannot_be_reached_is_asked_again(kubeconfig: Path):
    write_kubeconfig(kubeconfig, "http://127.0.0.1:1")
    async with watching(kubeconfig) as watched:
        assert await watched.next() == set()
    (report,) = watched.reports
    assert "the cluster at http://127.0.0.1:1 cannot be reached" in report


async def test_without_a_cluster_the_entry_is_refused(tmp_path: Path):
    async with watching(tmp_path / "absent") as watched:
        with pytest.raises(ConfigError, match=r"services\.policy_targets: kubernetes:.* needs a cluster: .*KUBECONFIG"):
            await watched.next()
