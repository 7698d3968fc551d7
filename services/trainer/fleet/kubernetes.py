"""The replicas behind a Service of Kubernetes: its endpoints, watched through any version of the API that has them."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.errors import ConfigError
from rlhf.process import is_in_pod, pod_namespace

try:
    import aiohttp
    from kubernetes.aio import client, config
    from kubernetes.aio.config.config_exception import ConfigException
except ImportError as error:
    raise ConfigError(
        "services.policy_targets: an entry 'kubernetes:///...' needs the package "
        f"'{error.name}': pip install 'rlhf-services[k8s]'"
    ) from None


Json = Mapping[str, Any]
SERVICE_LABEL = "kubernetes.io/service-name"
FAMILIES = ("IPv4", "IPv6", "FQDN")
CONNECT_SECONDS = 10
ANSWER_SECONDS = 30
WATCH_SECONDS = 60
"""How long the API keeps a watch open before it has to be asked for anew."""
SILENCE_SECONDS = 75
"""How long a watch may be silent before it counts as broken: longer than the API keeps one open."""
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 30.0


class RefusedError(Exception):
    """The API answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


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


def _addresses(found: Json) -> Iterator[Json]:
    for subset in found.get("subsets") or ():
        yield from subset.get("addresses") or ()
        yield from subset.get("notReadyAddresses") or ()


Kind = Slices | Endpoints
KINDS: tuple[Kind, ...] = (Slices("v1"), Slices("v1beta1"), Endpoints())
"""Newest first: from Kubernetes 1.21, from 1.17, and always."""


class KubernetesSource:
    """The endpoints of a Service: the pods of a StatefulSet by name, others by address."""

    def __init__(self, entry: str, *, kubeconfig: Path | None = None) -> None:
        """
        Args:
            entry: "kubernetes:///[namespace/]service:port".
            kubeconfig: which cluster it is; None takes the one that this pod is in, or else the user's kubeconfig.
        """
        self.entry = entry
        self._kubeconfig = kubeconfig
        *namespaces, address = entry.removeprefix("kubernetes:///").split("/")
        self._namespace = namespaces[0] if namespaces else ""
        self._name, _, port = address.rpartition(":")
        self._port = int(port)

    async def follow(self, found: Callable[[frozenset[str]], None], failed: Callable[[str], None]) -> None:
        """Watches for ever. Raises: ConfigError if there is no cluster, or it refuses from the beginning."""
        settings, namespace = await self._settings()
        service = Service(self._namespace or namespace, self._name, self._port)
        async with client.ApiClient(settings) as api:
            watcher = _Watcher(api, service, found)
            wait = FIRST_WAIT_SECONDS
            while True:
                try:
                    await watcher.look()
                except RefusedError as error:
                    if error.status == 403 and not watcher.has_watched:
                        raise ConfigError(self._forbidden(service, str(error))) from None
                    failed(f"the cluster answers {error.status}: {error}")
                except (aiohttp.ClientError, TimeoutError, OSError) as error:
                    failed(f"the cluster at {settings.host} cannot be reached: {error or type(error).__name__}")
                else:
                    wait = FIRST_WAIT_SECONDS
                    continue
                await asyncio.sleep(wait * random.uniform(0.5, 1))
                wait = min(2 * wait, LONGEST_WAIT_SECONDS)

    async def _settings(self) -> tuple[Any, str]:
        """Returns how the cluster is reached, and the namespace that is meant where none is named."""
        settings = client.Configuration()
        try:
            if is_in_pod() and self._kubeconfig is None:
                config.load_incluster_config(client_configuration=settings)
                return settings, pod_namespace()
            file = None if self._kubeconfig is None else str(self._kubeconfig)
            loader = await config.load_kube_config(
                config_file=file, client_configuration=settings, persist_config=False
            )
            return settings, str(loader.current_context["context"].get("namespace") or "default")
        except (ConfigException, OSError) as error:
            raise ConfigError(
                f"services.policy_targets: {self.entry} needs a cluster: {error}; in a pod, it must have a token of "
                "its service account (deploy/k8s/components/watch-replicas); elsewhere KUBECONFIG names a file"
            ) from None

    def _forbidden(self, service: Service, message: str) -> str:
        return (
            f"services.policy_targets: {self.entry} may not be watched: {message}; give the run's service account the "
            f"Role 'watch-replicas' of deploy/k8s/components/watch-replicas in namespace {service.namespace}, or write "
            f"dns:///{service.name}:{service.port}, which needs no access to the API"
        )


class _Watcher:
    """What is known of a Service's endpoints, and up to which change."""

    def __init__(self, api: Any, service: Service, found: Callable[[frozenset[str]], None]) -> None:
        self.has_watched = False
        self._api = api
        self._service = service
        self._found = found
        self._kind: Kind = KINDS[0]
        self._objects: dict[str, Json] = {}
        self._version = ""
        """Where the watch goes on; empty if everything has to be listed first."""

    async def look(self) -> None:
        """Lists if that is needed, and watches until the API ends it, as it does again and again.

        Raises: RefusedError; aiohttp.ClientError, TimeoutError or OSError if the API cannot be reached.
        """
        if not self._version:
            await self._list()
        options = {"watch": "true", "allowWatchBookmarks": "true", "resourceVersion": self._version}
        began = asyncio.get_running_loop().time()
        try:
            async with self._get(self._kind, SILENCE_SECONDS, timeoutSeconds=str(WATCH_SECONDS), **options) as response:
                self.has_watched = True
                self._tell()
                await self._take_events(response)
        except RefusedError as error:
            self._version = ""  # whatever it is, listing again mends it or says more
            if error.status != 410:  # 410: the changes since then are forgotten
                raise
        if asyncio.get_running_loop().time() - began < FIRST_WAIT_SECONDS:
            await asyncio.sleep(FIRST_WAIT_SECONDS)  # an API that ends every watch at once is not asked without pause

    async def _list(self) -> None:
        """Asks for all objects, in the newest form that the API has."""
        for kind in KINDS:
            try:
                async with self._get(kind, ANSWER_SECONDS) as response:
                    answer = json.loads(await response.read())
            except RefusedError as error:
                if error.status == 404 and kind is not KINDS[-1]:
                    continue
                raise
            self._kind = kind
            self._objects = {each["metadata"]["name"]: each for each in answer["items"] if self._is_ours(each)}
            self._version = answer["metadata"]["resourceVersion"]
            return

    async def _take_events(self, response: aiohttp.ClientResponse) -> None:
        """Follows a stream to its end, or until it breaks off: the next watch goes on from there."""
        try:
            async for line in response.content:
                if line.endswith(b"\n") and line.strip():  # the last one may be a part
                    self._take(json.loads(line))
        except (aiohttp.ClientError, TimeoutError, OSError):
            return

    def _take(self, event: Json) -> None:
        changed = event["object"]
        if event["type"] == "ERROR":
            raise RefusedError(changed.get("code", 500), changed.get("message", ""))
        name = changed["metadata"].get("name", "")
        if event["type"] == "DELETED" or (event["type"] == "MODIFIED" and not self._is_ours(changed)):
            self._objects.pop(name, None)
        elif event["type"] in ("ADDED", "MODIFIED") and self._is_ours(changed):
            self._objects[name] = changed
        self._version = changed["metadata"].get("resourceVersion") or self._version
        self._tell()

    def _tell(self) -> None:
        self._found(self._kind.replicas(self._service, self._objects.values()))

    def _is_ours(self, found: Json) -> bool:
        return self._kind.is_of(self._service, found)

    @asynccontextmanager
    async def _get(self, kind: Kind, silence_seconds: float, **options: str) -> AsyncIterator[aiohttp.ClientResponse]:
        """Yields the response of a question for the Service's objects. Raises: RefusedError."""
        parameters = await self._api.param_serialize(
            "GET",
            kind.path(self._service),
            query_params=[kind.selector(self._service), *options.items()],
            header_params={"Accept": "application/json"},
            auth_settings=["BearerToken"],
        )
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=silence_seconds)
        answer = await self._api.call_api(*parameters, _request_timeout=timeout)
        async with answer.response as response:
            if response.status != 200:
                raise RefusedError(response.status, _message(await response.text()))
            yield response


def _message(body: str) -> str:
    """Returns what the API says in an error."""
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return body.strip()[:500]
