"""The processes of bench/reward_service.py: the service, the plain server beside it, the offline loop and the load."""

import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.measurements import say
from bench.reward_work import RewardWork
from bench.worker import ENVIRONMENT, run_worker
from rlhf_cli.local.supervisor import ServiceSpec, Supervisor, describe_exit, free_ports, kill_group, spawn, tail

HERE = Path(__file__).parent
READY_TIMEOUT_SECONDS = 120.0
MAX_ROUND_SECONDS = 30.0
"""On a slow machine many callers do not come round in the time that a benchmark may take."""


class StartError(Exception):
    """A process did not come up; the message has the end of its log."""


@dataclass(frozen=True, slots=True)
class Side:
    """A server that runs."""

    targets: dict[str, str]
    """host:port by form of a call."""
    metrics: str = ""
    """URL of its Prometheus metrics."""


@dataclass(frozen=True, slots=True)
class Load:
    """What makes load, and for how long."""

    folder: Path
    work: RewardWork
    warmup: float
    seconds: float
    tokens_per_second: float
    """About what the model does: time enough for every caller to come round."""

    def measure(self, side: Side, form: str, callers: int) -> dict[str, Any]:
        """The figures of one phase. Raises: WorkerError."""
        tokens = sum(len(request.ids) for request in self.work.requests) / len(self.work.requests)
        round_seconds = min(MAX_ROUND_SECONDS, 1.2 * callers * tokens / self.tokens_per_second)
        command = [sys.executable, str(HERE / "reward_load.py"), "--work", str(work_file(self.folder))]
        command += ["--form", form, "--target", side.targets[form], "--metrics", side.metrics]
        command += ["--callers", str(callers), "--warmup", str(max(self.warmup, round_seconds))]
        command += ["--seconds", str(max(self.seconds, round_seconds))]
        result = run_worker("the load", command, self.folder / "load.json", self.folder / "load.log")
        p50, p99 = (result["latency_seconds"].get(name, 0.0) for name in ("p50", "p99"))
        say(
            f"{form}, {callers} callers: {result['requests_per_second']:.1f} requests/s, "
            f"{result['tokens_per_second']:.0f} tokens/s, p50 {p50:.3f} s, p99 {p99:.3f} s, "
            f"{result['refusals']} refused, {result['failures']} failed {result['failure']}"
        )
        return {"form": form, "callers": callers, **result}


def work_file(folder: Path) -> Path:
    """Where the work is handed to other processes."""
    return folder / "reward-work.json"


def measure_offline(folder: Path, seconds: float, budget: int | None) -> dict[str, Any]:
    """The figures of the offline loop. Raises: WorkerError."""
    command = [sys.executable, str(HERE / "reward_offline.py"), "--work", str(work_file(folder))]
    command += ["--seconds", str(seconds), *(("--budget", str(budget)) if budget is not None else ())]
    result = run_worker("the offline loop", command, folder / "offline.json", folder / "offline.log")
    say(f"offline: {result['tokens_per_second']:.0f} tokens/s in batches of {result['budget']} tokens")
    return result


@contextmanager
def running_service(folder: Path, model_path: str, flags: Sequence[str]) -> Iterator[Side]:
    """The reward service as users start it, ready. Raises: ServiceDiedError."""
    port, http_port, metrics_port = free_ports(3)
    command = [sys.executable, "-m", "services.reward.server", "--scorer.kind", "model", "--scorer.path", model_path]
    for name, value in (("port", port), ("metrics_port", metrics_port), ("host", "127.0.0.1"), ("drain_seconds", 1)):
        command += [f"--server.{name}", str(value)]
    command += ["--http.port", str(http_port), *flags]
    with Supervisor(folder / "logs", say) as supervisor:
        supervisor.start(ServiceSpec(name="reward", command=command, port=port, environment=ENVIRONMENT))
        supervisor.wait_ready(["reward"], READY_TIMEOUT_SECONDS, lambda states: None)
        http = f"127.0.0.1:{http_port}"
        targets = {"grpc": f"127.0.0.1:{port}", "http": http, "get_reward": http}
        yield Side(targets, f"http://127.0.0.1:{metrics_port}/metrics")


@contextmanager
def running_baseline(folder: Path, model_path: str) -> Iterator[Side]:
    """The plain server, ready. Raises: StartError."""
    (port,) = free_ports(1)
    log_path = folder / "baseline.log"
    command = [sys.executable, str(HERE / "reward_baseline.py"), "--model", model_path, "--port", str(port)]
    with log_path.open("wb") as log:
        process = spawn(command, ENVIRONMENT, log.fileno())
    try:
        deadline = time.monotonic() + READY_TIMEOUT_SECONDS
        while not _is_up(f"http://127.0.0.1:{port}/health"):
            exit_code = process.poll()
            if exit_code is not None or time.monotonic() > deadline:
                state = "is not up" if exit_code is None else f"ended ({describe_exit(exit_code)})"
                raise StartError(f"the plain server {state}; {log_path} ends with:\n{tail(log_path)}")
            time.sleep(0.2)
        yield Side({"get_reward": f"127.0.0.1:{port}"})
    finally:
        kill_group(process)


def _is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, TimeoutError, ConnectionError):
        return False
