"""Services on free ports of this machine: the flags of each kind, and the file that says where they are.

A pipeline keeps that file; `rlhf status --services FILE` and others read it.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

import tomli_w
from pydantic import AfterValidator, Field

from rlhf.config import Section, load_toml, suggestion
from rlhf.errors import ConfigError
from rlhf.files import write_whole
from rlhf.serving.directory import SERVICES
from rlhf_cli.local.supervisor import ServiceSpec, Supervisor, free_ports

Engine = Literal["vllm", "transformers"]
Dtype = Literal["bfloat16", "float32"]
Combine = Literal["mean", "worst", "mean_minus_std"]
DRAIN_SECONDS = 2.0
"""At the end nothing is in flight that anybody waits for."""
ENVIRONMENT = MappingProxyType(
    {
        "HF_HUB_OFFLINE": "1",  # all models are local, and a look-up that cannot succeed costs seconds
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
)
"""For every process."""


def _known(kind: str) -> str:
    if kind not in SERVICES:
        raise ValueError(f"there is no such service{suggestion(kind, SERVICES)}")
    return kind


Kind = Annotated[str, AfterValidator(_known)]
"""A service's name in the directory."""


class ServiceEntry(Section):
    """One service."""

    name: Annotated[str, Field(min_length=1)]
    """What to call it; several services may be of one kind."""
    kind: Kind
    """Which service of the directory it is."""
    target: Annotated[str, Field(min_length=1)]
    """Its "host:port"."""
    metrics_url: str = ""
    """Where its Prometheus metrics are; empty if not known."""


class ServicesFile(Section):
    """All services of a system."""

    service: list[ServiceEntry]
    """Each as a [[service]] table; none while nothing runs."""


class LocalServices:
    """Starts services on free local ports under a supervisor, and keeps RUN/services.toml in step."""

    def __init__(
        self, supervisor: Supervisor, services_file: Path, *, environment: Mapping[str, str] = ENVIRONMENT
    ) -> None:
        """Args: who runs the processes; the file to keep; variables for every process."""
        self._supervisor = supervisor
        self._services_file = services_file
        self._environment = environment
        self._entries: list[ServiceEntry] = []

    def start(self, name: str, kind: Kind, arguments: Sequence[str]) -> ServiceEntry:
        """Starts a service as a module; returns where it will be. It is not ready yet."""
        entry = self.announce(name, kind)
        command = [sys.executable, "-m", SERVICES[kind].module, *self.server_flags(entry)]
        command += ["--server.drain_seconds", str(DRAIN_SECONDS), *arguments]
        spec = ServiceSpec(name=name, command=command, port=_port(entry.target), environment=self._environment)
        self._supervisor.start(spec)
        return entry

    def end(self, *entries: ServiceEntry) -> None:
        """Stops services and takes them out of the services file."""
        self._supervisor.end(*(entry.name for entry in entries))
        for entry in entries:
            self.withdraw(entry)

    def announce(self, name: str, kind: Kind) -> ServiceEntry:
        """Chooses free ports for a service and writes it into the services file."""
        port, metrics_port = free_ports(2)
        entry = ServiceEntry(
            name=name,
            kind=kind,
            target=f"127.0.0.1:{port}",
            metrics_url=f"http://127.0.0.1:{metrics_port}/metrics",
        )
        self._entries.append(entry)
        write_services(self._services_file, self._entries)
        return entry

    def withdraw(self, entry: ServiceEntry) -> None:
        """Takes a service that has ended out of the services file."""
        self._entries.remove(entry)
        write_services(self._services_file, self._entries)

    def wait_ready(
        self,
        entries: Sequence[ServiceEntry],
        timeout_seconds: float,
        on_wait: Callable[[Mapping[str, float | None]], None],
    ) -> None:
        """Returns when the services can serve; see Supervisor.wait_ready."""
        self._supervisor.wait_ready([entry.name for entry in entries], timeout_seconds, on_wait)

    @staticmethod
    def server_flags(entry: ServiceEntry) -> list[str]:
        """Returns the flags that make a service listen where it was announced, on this machine alone."""
        metrics_port = entry.metrics_url.removesuffix("/metrics").rpartition(":")[2]
        return [
            *("--server.host", "127.0.0.1"),
            *("--server.port", str(_port(entry.target))),
            *("--server.metrics_port", metrics_port),
            # Several may run here, and HTTP is announced to nobody.
            *(("--http.port", "0") if SERVICES[entry.kind].http_port else ()),
        ]


def _port(target: str) -> int:
    return int(target.rpartition(":")[2])


def read_services(path: Path) -> list[ServiceEntry]:
    """Returns the services in a file. Raises: ConfigError for a file that is none, or names none."""
    services = load_toml(ServicesFile, path).service
    if not services:
        raise ConfigError(f"{path}: it names no service; the command that keeps it runs none at the moment")
    return services


def write_services(path: Path, services: list[ServiceEntry]) -> None:
    """Writes the file anew, whole or not at all."""
    write_whole(path, tomli_w.dumps({"service": [entry.model_dump() for entry in services]}))


def policy_arguments(model: Path, *, engine: Engine, dtype: Dtype, max_sequence_tokens: int | None = None) -> list[str]:
    """Returns the flags of a policy service for a checkpoint; no limit takes the service's own."""
    arguments = ["--model.path", str(model), "--model.engine", engine, "--model.dtype", dtype]
    limit = [] if max_sequence_tokens is None else ["--model.max_sequence_tokens", str(max_sequence_tokens)]
    return [*arguments, *limit]


def reference_arguments(model: Path, *, dtype: Dtype) -> list[str]:
    """Returns the flags of a reference service for a checkpoint."""
    return ["--model.path", str(model), "--model.dtype", dtype]


def reward_arguments(model: Path, *, dtype: Dtype) -> list[str]:
    """Returns the flags of a reward service for a reward-model checkpoint."""
    return ["--scorer.kind", "model", "--scorer.path", str(model), "--scorer.dtype", dtype]


def ensemble_arguments(members: Sequence[Path], *, combine: Combine, std_coef: float, dtype: Dtype) -> list[str]:
    """Returns the flags of a reward service for several reward models, combined."""
    paths = json.dumps([str(path) for path in members])
    how = ["--scorer.combine", combine, "--scorer.std_coef", str(std_coef), "--scorer.dtype", dtype]
    return ["--scorer.kind", "ensemble", "--scorer.paths", paths, *how]


def pattern_arguments(pattern: str, tokenizer: Path) -> list[str]:
    """Returns the flags of a reward service that gives 1 where a regular expression matches, else 0."""
    return ["--scorer.kind", "pattern", f"--scorer.pattern={pattern}", "--scorer.tokenizer", str(tokenizer)]
