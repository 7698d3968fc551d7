"""A Kubernetes API over HTTP that keeps objects in memory: as much of it as runs need. Nothing is scheduled or run."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: fake
contexts: [{{name: fake, context: {{cluster: fake, user: fake}}}}]
clusters: [{{name: fake, cluster: {{server: "{url}"}}}}]
users: [{{name: fake, user: {{token: secret}}}}]
"""


class FakeKubernetes:
    """What the API holds."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        """By (plural of the kind, name)."""
        self.logs: dict[tuple[str, str], list[str]] = {}
        """Lines by (pod, container), each with its time stamp."""
        self.refusals: dict[tuple[str, str], tuple[int, str]] = {}
        """Status and message for a method on a plural."""
        self.requests: list[str] = []
        """Method, path and query of every request, in their order."""
        self.on_look: list[Callable[[], None]] = []
        """What happens meanwhile: the first is taken and called before each answer to a question for a Job."""

    def add(self, manifest: dict[str, Any]) -> None:
        """Puts an object there, in place of one of its name."""
        manifest["metadata"].setdefault("creationTimestamp", "2026-05-01T10:00:00Z")
        self.objects[manifest["kind"].lower() + "s", manifest["metadata"]["name"]] = manifest

    def find(self, plural: str, query: dict[str, list[str]]) -> list[dict[str, Any]]:
        """Returns the objects with the label, or the label and value, of the selector."""
        label, _, value = query.get("labelSelector", [""])[0].partition("=")
        found = [each for (kind, _), each in self.objects.items() if kind == plural]
        labels = [each["metadata"].get("labels", {}) for each in found]
        return [
            each
            for each, own in zip(found, labels, strict=True)
            if not label or (label in own and value in ("", own[label]))
        ]

    def remove(self, plural: str, name: str) -> bool:
        """Removes an object, with the pods of a Job; returns whether it was there."""
        gone = self.objects.pop((plural, name), None)
        if gone is not None and plural == "jobs":
            label = gone["metadata"]["labels"]["rlhf-services/run"]
            for pod in self.find("pods", {"labelSelector": [f"rlhf-services/run={label}"]}):
                del self.objects["pods", pod["metadata"]["name"]]
        return gone is not None


@contextmanager
def fake_kubernetes(folder: Path) -> Iterator[tuple[FakeKubernetes, Path]]:
    """Yields a fake that listens, and the kubeconfig that leads to it."""
    fake = FakeKubernetes()
    server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *arguments: _Handler(fake, *arguments))
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    kubeconfig = folder / "kubeconfig"
    kubeconfig.write_text(KUBECONFIG.format(url=f"http://127.0.0.1:{server.server_port}"))
    try:
        yield fake, kubeconfig
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, fake: FakeKubernetes, *arguments: Any) -> None:
        self._fake = fake
        super().__init__(*arguments)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        """Answers get, list and log."""
        self._answer()

    def do_POST(self) -> None:
        """Answers create."""
        self._answer()

    def do_DELETE(self) -> None:
        """Answers delete."""
        self._answer()

    def _answer(self) -> None:
        fake, parts = self._fake, urlsplit(self.path)
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "null")
        fake.requests.append(f"{self.command} {self.path}")
        plural, *rest = parts.path.partition("/namespaces/")[2].split("/")[1:]
        if self.command == "GET" and plural == "jobs" and fake.on_look:
            fake.on_look.pop(0)()
        if refusal := fake.refusals.get((self.command, plural)):
            self._refuse(*refusal)
        elif rest[1:] == ["log"]:
            self._send(200, "\n".join([*fake.logs[rest[0], parse_qs(parts.query)["container"][0]], ""]).encode())
        elif self.command == "POST":
            self._create(plural, body)
        elif not rest:
            self._send_json(200, {"items": fake.find(plural, parse_qs(parts.query))})
        elif (plural, rest[0]) not in fake.objects:
            self._refuse(404, f'{plural} "{rest[0]}" not found')
        elif self.command == "DELETE":
            fake.remove(plural, rest[0])
            self._send_json(200, {"status": "Success"})
        else:
            self._send_json(200, fake.objects[plural, rest[0]])

    def _create(self, plural: str, manifest: dict[str, Any]) -> None:
        name = manifest["metadata"]["name"]
        if (plural, name) in self._fake.objects:
            self._refuse(409, f'{plural} "{name}" already exists')
        else:
            self._fake.add(manifest)
            self._send_json(201, manifest)

    def _refuse(self, status: int, message: str) -> None:
        self._send_json(status, {"kind": "Status", "message": message})

    def _send_json(self, status: int, value: dict[str, Any]) -> None:
        self._send(status, json.dumps(value).encode())

    def _send(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
