"""Services on free ports of this machine, with the flags that each kind is started with."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from rlhf.serving.directory import SERVICES
from rlhf_cli.local.services_file import Kind, ServiceEntry, write_services
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
        """Starts `python -m services.<kind>`; returns where it will be. It is not ready yet."""
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
