"""A Kubernetes for the tests: the one of $KUBECONFIG, or a node of 1.20 started with the scripts in $PLATFORM.

The cluster of $KUBECONFIG needs a default storage class, and the images on its nodes (`kind load docker-image`).
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NAMESPACE = "rlhf"
VOLUMES = Path("/var/tmp/rlhf-services-test")
"""Where kube120/volumes.yaml keeps what the pods of a started node write."""
IMAGES = tuple(f"rlhf-services/{name}:0.1.0-cpu" for name in ("policy", "reward", "reference", "trainer", "cli"))
"""As the manifests name them."""
STARTUP_SECONDS = 300
"""How long pods may take: images are there, but two cores start five Pythons with torch at once."""


@dataclass(frozen=True)
class Cluster:
    """Talks to a cluster as a user does: with kubectl and rlhf."""

    kubeconfig: Path

    def kubectl(self, *arguments: str, text: str | None = None, check: bool = True) -> str:
        """Runs kubectl in our namespace and returns what it printed; a failure fails the test with its words."""
        return self._run(["kubectl", "--namespace", NAMESPACE, *arguments], text, check)

    def rlhf(self, *arguments: str, check: bool = True) -> str:
        """Runs rlhf on this machine and returns what it printed."""
        return self._run([str(Path(sys.executable).parent / "rlhf"), *arguments], None, check)

    def inside(self, pod: str, *command: str, text: str | None = None, check: bool = True) -> str:
        """Runs a command in a pod and returns what it printed."""
        return self.kubectl("exec", "--stdin", pod, "--", *command, text=text, check=check)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Starts kubectl and leaves it running, with pipes to it."""
        command = ["kubectl", "--namespace", NAMESPACE, *arguments]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return subprocess.Popen(command, env=self._environment, text=True, **pipes)

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """Returns an object."""
        found: dict[str, Any] = json.loads(self.kubectl("get", kind, name, "--output=json"))
        return found

    def pods(self, selector: str) -> list[dict[str, Any]]:
        """Returns the pods with these labels."""
        found: list[dict[str, Any]] = json.loads(self.kubectl("get", "pods", f"--selector={selector}", "-o", "json"))[
            "items"
        ]
        return found

    def wait_until(self, holds: Callable[[], bool], what: str, seconds: float = 120) -> None:
        """Waits until something holds; the error says what did not, and what the pods were doing."""
        deadline = time.monotonic() + seconds
        while not holds():
            if time.monotonic() > deadline:
                raise AssertionError(f"not within {seconds:g} s: {what}\n{self.state()}")
            time.sleep(0.5)

    def state(self) -> str:
        """Returns what an engineer would look at first."""
        pods = self.kubectl("get", "pods", "--output=wide", check=False)
        events = self.kubectl("get", "events", "--sort-by=.lastTimestamp", check=False)
        return f"{pods}\n" + "\n".join(events.splitlines()[-20:])

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, "KUBECONFIG": str(self.kubeconfig), "COLUMNS": "200"}

    def _run(self, command: list[str], text: str | None, check: bool) -> str:
        done = subprocess.run(
            command, env=self._environment, input=text, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}\n{self.state()}")
        return done.stdout


@contextmanager
def a_cluster() -> Iterator[Cluster]:
    """Yields a cluster in which our services are ready, and takes away what it added."""
    if given := os.environ.get("KUBECONFIG"):
        cluster, overlay = Cluster(Path(given)), HERE / "tiny"
        if cluster.kubectl("get", "namespace", NAMESPACE, "--ignore-not-found").strip():
            raise RuntimeError(f"the cluster of KUBECONFIG has a namespace {NAMESPACE}, which the tests would delete")
        cluster.kubectl("apply", f"--kustomize={overlay}")
        try:
            yield cluster
        finally:
            cluster.kubectl("delete", f"--kustomize={overlay}", "--ignore-not-found", "--timeout=120s", check=False)
        return
    platform = os.environ.get("PLATFORM")
    if not platform:
        raise RuntimeError("no cluster: set KUBECONFIG, or PLATFORM to a folder with kube-up.sh and kube-down.sh")
    printed = subprocess.run([f"{platform}/kube-up.sh"], check=True, stdout=subprocess.PIPE, text=True).stdout
    try:
        cluster = Cluster(Path(printed.splitlines()[-1]))
        _load_images(cluster.kubeconfig.parent.parent / "docker.sock")
        for volume in ("models", "runs"):
            shutil.rmtree(VOLUMES / volume, ignore_errors=True)
            (VOLUMES / volume).mkdir(parents=True)
            (VOLUMES / volume).chmod(0o777)  # the kubelet hands a folder of the node to nobody: fsGroup does nothing
        cluster.kubectl("apply", f"--kustomize={HERE / 'kube120'}")
        yield cluster
    finally:
        subprocess.run([f"{platform}/kube-down.sh"], check=False)
        shutil.rmtree(VOLUMES, ignore_errors=True)


def _load_images(socket: Path) -> None:
    """Copies what the node's engine lacks from the one that built it; in one go, so that shared layers travel once."""
    here, node = ["docker"], ["docker", "-H", f"unix://{socket}"]
    missing = [image for image in IMAGES if not (there := _image_id(node, image)) or there != _image_id(here, image)]
    if not missing:
        return
    save = subprocess.Popen([*here, "save", *missing], stdout=subprocess.PIPE)
    subprocess.run([*node, "load", "--quiet"], check=True, stdin=save.stdout)
    if save.wait() != 0:
        raise RuntimeError(f"docker save failed: build the images first, with make images ({', '.join(missing)})")


def _image_id(docker: list[str], image: str) -> str:
    """Returns an image's digest; empty if the engine does not have it."""
    command = [*docker, "image", "inspect", "--format={{.Id}}", image]
    return subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout.strip()
