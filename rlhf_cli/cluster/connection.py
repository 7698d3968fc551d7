"""A connection to a cluster's API: objects as plain JSON, and errors as sentences."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rlhf.process import is_in_pod, pod_namespace
from rlhf_cli.cluster.manifests import Manifest
from rlhf_cli.errors import AbsentError, ClusterError, ExistsError, UnreachableError, missing_extra

try:
    import urllib3
    from kubernetes import client, config
    from kubernetes.client.exceptions import ApiException
    from kubernetes.config.config_exception import ConfigException
except ImportError as error:
    raise missing_extra(error) from None

PATHS: Mapping[str, str] = MappingProxyType(
    {
        "ConfigMap": "/api/v1/namespaces/{namespace}/configmaps",
        "Event": "/api/v1/namespaces/{namespace}/events",
        "Job": "/apis/batch/v1/namespaces/{namespace}/jobs",
        "Pod": "/api/v1/namespaces/{namespace}/pods",
        "PodTemplate": "/api/v1/namespaces/{namespace}/podtemplates",
        "Service": "/api/v1/namespaces/{namespace}/services",
    }
)
"""Where the kinds that we touch are. The Role `rlhf-submit` allows these and no others."""

DEFAULT_NAMESPACE = "rlhf"
CONNECT_SECONDS = 10
ANSWER_SECONDS = 60
SILENCE_SECONDS = 300
"""How long a log may be silent before the stream is opened anew; it may have broken unseen."""
ROLE_HINT = "ask for the Role 'rlhf-submit' of deploy/k8s/base in this namespace"


class Cluster:
    """The API of a cluster, in one namespace. Every method raises ClusterError for what the cluster refuses."""

    def __init__(self, api: "client.ApiClient", namespace: str) -> None:
        self._api = api
        self.namespace = namespace

    def get(self, kind: str, name: str) -> Manifest:
        """Returns an object. Raises: AbsentError."""
        return self._json("GET", kind, f"/{name}")

    def find(self, kind: str, *, labels: str = "") -> list[Manifest]:
        """Returns the objects that the selector matches; all of that kind without one."""
        return list(self._json("GET", kind, query={"labelSelector": labels} if labels else None)["items"])

    def create(self, manifest: Manifest) -> None:
        """Creates an object. Raises: ExistsError."""
        self._json("POST", manifest["kind"], body=manifest)

    def delete(self, kind: str, name: str) -> bool:
        """Deletes an object, a Job only when its pods are gone; returns whether it was there."""
        policy = "Foreground" if kind == "Job" else "Background"
        options = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": policy}
        try:
            self._json("DELETE", kind, f"/{name}", body=options)
        except AbsentError:
            return False
        return True

    def log_lines(self, pod: str, container: str, **options: str) -> Iterator[str]:
        """Yields the lines of a container's log.

        Args:
            options: as in the API: follow, previous, tailLines, sinceTime, timestamps.
        """
        path = f"{PATHS['Pod'].format(namespace=self.namespace)}/{pod}/log"
        response = self._request("GET", path, {"container": container, **options}, None, SILENCE_SECONDS)
        rest = b""
        try:
            for chunk in response.stream(decode_content=False):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from (line.decode("utf-8", "replace") for line in lines)
        except urllib3.exceptions.HTTPError:
            return  # broken off; whoever follows looks at the pod and asks again
        finally:
            response.close()
        if rest:
            yield rest.decode("utf-8", "replace")

    def _json(
        self,
        method: str,
        kind: str,
        path: str = "",
        query: Mapping[str, str] | None = None,
        body: Manifest | None = None,
    ) -> Manifest:
        whole = PATHS[kind].format(namespace=self.namespace) + path
        response = self._request(method, whole, query or {}, body, ANSWER_SECONDS)
        answer: Manifest = json.loads(response.data)
        return answer

    def _request(
        self, method: str, path: str, query: Mapping[str, str], body: Manifest | None, answer_seconds: float
    ) -> Any:
        """Returns the response, its body unread."""
        parameters = self._api.param_serialize(
            method,
            path,
            query_params=list(query.items()),
            header_params={"Accept": "application/json, */*", "Content-Type": "application/json"},
            body=body,
            auth_settings=["BearerToken"],
        )
        try:
            answer = self._api.call_api(*parameters, _request_timeout=(CONNECT_SECONDS, answer_seconds))
        except (ApiException, urllib3.exceptions.HTTPError) as error:
            raise UnreachableError(
                f"the cluster at {self._api.configuration.host} does not answer ({_cause(error)}); is it up, and is it "
                "the right one? --context and --kubeconfig choose another"
            ) from None
        if not 200 <= answer.status <= 299:
            answer.read()
            raise _explained(answer.status, answer.data, self.namespace)
        return answer.response


def connect(*, kubeconfig: Path | None = None, context: str | None = None, namespace: str | None = None) -> Cluster:
    """Returns the cluster that the flags name, or else the one that this pod is in, or else the kubeconfig's.

    The namespace is the flag's, else the pod's or the context's, else "rlhf".

    Raises: ClusterError if there is none.
    """
    settings = client.Configuration()
    settings.retries = 0  # a retry would print a warning of its own; our error says it once
    named = kubeconfig is not None or context is not None
    try:
        if is_in_pod() and not named:
            config.load_incluster_config(client_configuration=settings)
            found = pod_namespace()
        else:
            found = _load_kubeconfig(kubeconfig, context, settings)
    except (ConfigException, OSError) as error:
        raise ClusterError(
            f"no cluster to talk to: {error}; name one with --kubeconfig FILE or --context NAME"
        ) from None
    if not settings.verify_ssl:  # the kubeconfig says so; kubectl does not warn on every request either
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    return Cluster(client.ApiClient(settings), namespace or found or DEFAULT_NAMESPACE)


def _load_kubeconfig(kubeconfig: Path | None, context: str | None, settings: "client.Configuration") -> str:
    """Fills the settings; returns the context's namespace, "" if it has none."""
    file = None if kubeconfig is None else str(kubeconfig)
    config.load_kube_config(config_file=file, context=context, client_configuration=settings, persist_config=False)
    contexts, current = config.list_kube_config_contexts(config_file=file)
    chosen = next((each for each in contexts if each["name"] == context), current)
    return str(chosen["context"].get("namespace", ""))


def _cause(error: Exception) -> str:
    """Returns the innermost reason of a failed connection, without the addresses of objects."""
    reason = getattr(error, "reason", None) or error
    return re.sub(r"^\S+\(.*?\)>?: ", "", str(reason)).strip() or type(reason).__name__


def _explained(status: int, body: bytes, namespace: str) -> ClusterError:
    """Returns what a refusal means."""
    try:
        message = str(json.loads(body).get("message", ""))
    except ValueError:
        message = body.decode("utf-8", "replace").strip()[:500]
    match status:
        case 401:
            return ClusterError(f"the cluster does not know who asks ({message}); log in to it again")
        case 403 if " is forbidden: User " in message:
            return ClusterError(f"{message}; {ROLE_HINT}")
        case 404:
            return AbsentError(f"{message} (namespace {namespace})")
        case 409:
            return ExistsError(message)
        case _:
            return ClusterError(f"the cluster answers {status}: {message}")
