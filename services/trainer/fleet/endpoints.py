"""The replicas that the objects of a Service's endpoints name, in each way that a Kubernetes API has them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Json = Mapping[str, Any]

SERVICE_LABEL = "kubernetes.io/service-name"
FAMILIES = ("IPv4", "IPv6", "FQDN")


@dataclass(frozen=True)
class Service:
    """A Service, and the port of its pods that replicas listen on."""

    namespace: str
    name: str
    port: int

    def target(self, address: str, hostname: str) -> str:
        """Returns "host:port": the pod's own name below the Service if it has one, as in a StatefulSet.

        Such a name stays through a restart, and certificates are made for it.
        """
        if hostname:
            return f"{hostname}.{self.name}.{self.namespace}.svc:{self.port}"
        return f"[{address}]:{self.port}" if ":" in address else f"{address}:{self.port}"


class Slices:
    """EndpointSlices: any number of objects, which have the Service's name as a label."""

    def __init__(self, version: str) -> None:
        """Args: version: of discovery.k8s.io."""
        self.description = f"endpointslices of discovery.k8s.io/{version}"
        self._version = version

    def path(self, service: Service) -> str:
        """Returns where the objects are listed."""
        return f"/apis/discovery.k8s.io/{self._version}/namespaces/{service.namespace}/endpointslices"

    def selector(self, service: Service) -> tuple[str, str]:
        """Returns the parameter of a question for a Service's objects alone."""
        return "labelSelector", f"{SERVICE_LABEL}={service.name}"

    def is_of(self, service: Service, found: Json) -> bool:
        """Returns whether an object is the Service's."""
        return bool(found["metadata"].get("labels", {}).get(SERVICE_LABEL) == service.name)

    def replicas(self, service: Service, objects: Iterable[Json]) -> frozenset[str]:
        """Returns the targets of all endpoints but those that terminate; the ones that are not ready stay.

        A pod with addresses of both families stands in two slices: its IPv4 address counts.
        """
        ordered = sorted(objects, key=lambda each: FAMILIES.index(each.get("addressType", "IPv4")))
        targets: dict[str, str] = {}
        for endpoint in (each for found in ordered for each in found.get("endpoints") or ()):
            address = endpoint["addresses"][0]
            if not (endpoint.get("conditions") or {}).get("terminating"):
                pod = (endpoint.get("targetRef") or {}).get("uid") or address
                targets.setdefault(pod, service.target(address, endpoint.get("hostname") or ""))
        return frozenset(targets.values())


class Endpoints:
    """Endpoints, of clusters that have no EndpointSlices: one object, of the Service's name."""

    description = "endpoints"

    def path(self, service: Service) -> str:
        """Returns where the objects are listed."""
        return f"/api/v1/namespaces/{service.namespace}/endpoints"

    def selector(self, service: Service) -> tuple[str, str]:
        """Returns the parameter of a question for a Service's object alone."""
        return "fieldSelector", f"metadata.name={service.name}"

    def is_of(self, service: Service, found: Json) -> bool:
        """Returns whether an object is the Service's."""
        return bool(found["metadata"]["name"] == service.name)

    def replicas(self, service: Service, objects: Iterable[Json]) -> frozenset[str]:
        """Returns the targets of all addresses, ready or not. They do not say which pods terminate."""
        return frozenset(
            service.target(each["ip"], each.get("hostname") or "") for found in objects for each in _addresses(found)
        )


Kind = Slices | Endpoints
KINDS: tuple[Kind, ...] = (Slices("v1"), Slices("v1beta1"), Endpoints())
"""Newest first: from Kubernetes 1.21, from 1.17, and always."""


def _addresses(found: Json) -> Iterator[Json]:
    for subset in found.get("subsets") or ():
        yield from subset.get("addresses") or ()
        yield from subset.get("notReadyAddresses") or ()
