"""The committed compose stack, started for a test under a project name of its own."""

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.deploy.prometheus_api import Prometheus
from tests.support.paths import ROOT

FILES = (ROOT / "deploy" / "compose" / "compose.yaml", ROOT / "tests" / "deploy" / "compose.test.yaml")
PROJECT = "rlhf-deploy-test"
PORTS = ("POLICY", "REWARD", "REFERENCE", "TRAINER", "PROMETHEUS", "GRAFANA")
LOCAL_PROMETHEUS = "rlhf-deploy-test/prometheus:local"
# Fits where the distribution's own binary runs: the base image of ours is the same distribution here.
PROMETHEUS_DOCKERFILE = """\
FROM python:3.11-slim-bookworm
COPY prometheus promtool /bin/
RUN mkdir /prometheus && chown 65534:65534 /prometheus
USER 65534:65534
ENTRYPOINT ["/bin/prometheus"]
"""


def run(arguments: Sequence[str], *, env: dict[str, str] | None = None, check: bool = True) -> str:
    """Returns what a command printed; a failure fails the test with its words."""
    done = subprocess.run(arguments, capture_output=True, text=True, env=env, check=False)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def can_have(image: str) -> bool:
    """Returns whether an image is on this machine, or a registry gives it."""
    for verb in (["image", "inspect"], ["pull", "--quiet"]):
        if subprocess.run(["docker", *verb, image], capture_output=True, check=False).returncode == 0:
            return True
    return False


def build_local_prometheus(folder: Path) -> str:
    """Returns the name of an image made of this machine's own Prometheus, for where no registry is in reach."""
    for program in ("prometheus", "promtool"):
        found = shutil.which(program)
        assert found, f"neither a registry with Prometheus' image nor a program '{program}' on the PATH is in reach"
        shutil.copy(found, folder / program)
    (folder / "Dockerfile").write_text(PROMETHEUS_DOCKERFILE)
    run(["docker", "build", "--quiet", "--tag", LOCAL_PROMETHEUS, str(folder)])
    return LOCAL_PROMETHEUS


@dataclass
class ComposeStack:
    """A stack and what one asks of it."""

    variables: dict[str, str] = field(default_factory=dict)
    """What .env or the shell of a user would hold."""

    def compose(self, *arguments: str, check: bool = True, **variables: str) -> str:
        """Returns what `docker compose ARGUMENTS` printed."""
        files = [part for path in FILES for part in ("--file", str(path))]
        ports = {f"RLHF_{name}_PORT": "0" for name in PORTS}  # free ones: the user's own stack may be up
        env = {**os.environ, **ports, **self.variables, **variables}
        return run(["docker", "compose", "--project-name", PROJECT, *files, *arguments], env=env, check=check)

    def inspect(self, service: str) -> dict[str, Any]:
        """Returns what the engine knows of a service's container, running or not."""
        container = self.compose("ps", "--all", "--quiet", service).strip()
        described: list[dict[str, Any]] = json.loads(run(["docker", "inspect", container]))
        return described[0]

    def crash(self, service: str) -> None:
        """Ends a service's process as a fault would; `docker kill` counts as the user's will, and nothing restarts."""
        kill = "import os; os.kill(int(open('/proc/1/task/1/children').read().split()[0]), 9)"
        self.compose("exec", "--no-TTY", service, "python", "-c", kill)

    def is_healthy(self, service: str) -> bool:
        """Returns whether its container runs and its health check passed last."""
        state = self.inspect(service)["State"]
        return bool(state["Running"]) and state["Health"]["Status"] == "healthy"

    def prometheus(self) -> Prometheus:
        """Returns the stack's Prometheus."""
        return Prometheus(f"http://{self.compose('port', 'prometheus', '9090').strip()}")

    def read(self, service: str, path: str) -> str:
        """Returns a file of a container, running or not."""
        container = self.inspect(service)["Id"]
        archive = subprocess.run(["docker", "cp", f"{container}:{path}", "-"], capture_output=True, check=True).stdout
        done = subprocess.run(["tar", "-xO"], input=archive, capture_output=True, check=True)
        return done.stdout.decode()

    def down(self) -> None:
        """Removes containers, networks and volumes."""
        self.compose("--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "10")
