"""An offline training on Prometheus, where it is given a port: its newest step, and how it stands."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from rlhf.errors import ConfigError
from services.trainer.service.control import RunState
from services.trainer.telemetry.gauges import register_run_gauges


class FitMetrics(Collector):
    """The metrics of the newest step, whichever the training has, as rlhf_trainer_<name>."""

    def __init__(self, run_name: str, algorithm: str, num_steps: int) -> None:
        self.run_name, self.algorithm, self.num_steps = run_name, algorithm, num_steps
        self.state: RunState = "running"
        self.last_step_time = datetime.now(UTC)
        """When the last step ended; the start of this process while it has ended none."""
        self._newest: Mapping[str, float] = {}

    def observe(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes over a finished step; what was held out and is not measured in every step stays."""
        self.last_step_time = datetime.now(UTC)
        self._newest = {**self._newest, **metrics, "step": step}

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Yields nothing: the metrics are those that the steps will bring."""
        yield from ()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yields the newest value of each metric."""
        for name, value in self._newest.items():
            yield GaugeMetricFamily(f"rlhf_trainer_{name}", "As in metrics.jsonl (docs/training.md).", value=value)


@contextmanager
def served(metrics: FitMetrics, run_dir: Path, port: int | None) -> Iterator[FitMetrics]:
    """Serves the metrics on a port while the block runs; None serves none. Raises: ConfigError if it is taken."""
    if port is None:
        yield metrics
        return
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(metrics)
    register_run_gauges(metrics, run_dir, registry)
    try:
        server, _ = start_http_server(port, registry=registry)
    except OSError:
        raise ConfigError(
            f"server.metrics_port is {port}: already in use; stop the process that has it, or take another"
        ) from None
    try:
        yield metrics
    finally:
        server.shutdown()
        server.server_close()
