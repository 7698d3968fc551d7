"""A cluster with the trainer's PodTemplate, and a run to submit to it, for tests of `rlhf submit` and `rlhf runs`."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from rlhf_cli.main import main
from tests.support.fake_kubernetes import FakeKubernetes, fake_kubernetes
from tests.support.ports import free_port

CONFIG = '[model]\npath = "/models/policy"\n[prompts]\npath = "prompts.jsonl"\n[critic]\nkind = "head"\n'
TEMPLATE: dict[str, Any] = {
    "kind": "PodTemplate",
    "metadata": {"name": "trainer"},
    "template": {"spec": {"containers": [{"name": "trainer", "image": "trainer:1"}]}},
}


class World:
    """A cluster with the PodTemplate, and a run's files."""

    def __init__(self, api: FakeKubernetes, kubeconfig: Path) -> None:
        self.api, self.kubeconfig, self.folder = api, kubeconfig, kubeconfig.parent
        (self.folder / "first.toml").write_text(CONFIG)
        (self.folder / "prompts.jsonl").write_text('{"prompt": "Hello"}\n')
        api.add(copy.deepcopy(TEMPLATE))

    def rlhf(self, *arguments: str) -> int:
        """Runs a command against the cluster; returns its exit code."""
        return main([*arguments, "--kubeconfig", str(self.kubeconfig)])

    def submit(self, *arguments: str) -> int:
        """Submits the run."""
        files = ("--config", f"{self.folder}/first.toml", "--file", f"{self.folder}/prompts.jsonl")
        return self.rlhf("submit", "ppo", *files, *arguments)

    def pod(self, name: str, state: dict[str, Any], phase: str = "Running", **status: Any) -> None:
        """Puts a pod of the run there, with the trainer in a state."""
        self.api.add(
            {
                "kind": "Pod",
                "metadata": {"name": name, "labels": {"rlhf-services/run": "first"}},
                "spec": {"containers": [{"name": "trainer"}], "nodeName": "node-7"},
                "status": {
                    "phase": phase,
                    "containerStatuses": [{"name": "trainer", "image": "trainer:1", "state": state, **status}],
                },
            }
        )

    def end(self, condition: str, message: str = "") -> None:
        """Lets the Job end."""
        self.api.objects["jobs", "run-first"]["status"] = {
            "conditions": [{"type": condition, "status": "True", "message": message}]
        }

    def kinds(self) -> set[str]:
        """What of the run is there."""
        return {kind for kind, name in self.api.objects if name == "run-first"}


def unreachable(world: World) -> Path:
    """A kubeconfig that leads nowhere."""
    text = yaml.safe_load(world.kubeconfig.read_text())
    text["clusters"][0]["cluster"]["server"] = f"http://127.0.0.1:{free_port()}"
    path = world.folder / "unreachable"
    path.write_text(yaml.safe_dump(text))
    return path


@contextmanager
def cluster_world(folder: Path) -> Iterator[World]:
    """Yields the world, which is gone afterwards."""
    with fake_kubernetes(folder) as (api, kubeconfig):
        yield World(api, kubeconfig)
