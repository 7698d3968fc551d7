"""Gauges that have no sample before there is something to say."""

import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import get_args

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from rlhf.errors import ConfigError
from services.trainer.service.control import RunControl, RunState


class LateGauges(Collector):
    """Has a sample for what is known, and none for the rest: a gauge of 0 would be a reward, or a KL, of 0."""

    def __init__(self, prefix: str, texts: Mapping[str, str], registry: CollectorRegistry) -> None:
        """Args: prefix: of all names on Prometheus. texts: names without it, and what they mean."""
        self._prefix, self._texts = prefix, dict(texts)
        self._values: Mapping[str, float] = {}
        registry.register(self)

    def set(self, values: Mapping[str, float]) -> None:
        """Takes over what is known now, instead of what was; names that are not ours are passed over."""
        self._values = dict(values)

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Yields all gauges, without samples."""
        for name, text in self._texts.items():
            yield GaugeMetricFamily(self._prefix + name, text)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yields the gauges of which something is known."""
        values = self._values
        for name, text in self._texts.items():
            if name in values:
                yield GaugeMetricFamily(self._prefix + name, text, value=values[name])


def register_run_gauges(run: "RunControl | FitMetrics", run_dir: Path, registry: CollectorRegistry) -> None:
    """Puts the gauges of a run on its registry; what changes is asked for at every scrape."""

    def gauge(name: str, text: str, value: Callable[[], float]) -> None:
        Gauge(f"rlhf_trainer_{name}", text, registry=registry).set_function(value)

    info = Gauge("rlhf_trainer_run_info", "1, for the run and its algorithm.", ["run", "algorithm"], registry=registry)
    info.labels(run.run_name, run.algorithm).set(1)
    state = Gauge("rlhf_trainer_state", "1 for what the run is doing, 0 for the others.", ["state"], registry=registry)
    for each in get_args(RunState):
        state.labels(each).set_function(partial(lambda each: float(run.state == each), each))
    gauge("steps_planned", "Steps of the whole run.", lambda: run.num_steps)
    gauge(
        "last_step_timestamp_seconds",
        "When the last step ended, as Unix time; when this process began, while it has ended none.",
        lambda: run.last_step_time.timestamp(),
    )
    gauge("disk_free_bytes", "Free on the file system of run_dir; NaN if it is away.", lambda: _disk(run_dir)[0])
    gauge("disk_size_bytes", "Size of the file system of run_dir; NaN if it is away.", lambda: _disk(run_dir)[1])


def register_kl_budget(nats: float, registry: CollectorRegistry) -> None:
    """Puts watch.kl_budget on the registry of a run, for alerts to compare with."""
    text = "KL to the reference past which somebody should look, in nats per completion."
    Gauge("rlhf_trainer_kl_budget", text, registry=registry).set(nats)


def _disk(run_dir: Path) -> tuple[float, float]:
    """Returns free and total bytes. A disk that is away must not cost the scrape all other metrics."""
    try:
        usage = shutil.disk_usage(run_dir)
    except OSError:
        return math.nan, math.nan
    return usage.free, usage.total


EVALUATION_METRICS: Mapping[str, str] = MappingProxyType(
    {
        "step": "Steps that the policy had taken when it was evaluated last.",
        "reward_mean": "Mean reward of the completions of held-out prompts, by the run's own reward service.",
        "gold_reward_mean": "Mean reward of the same by the gold reward service; no sample while that is away.",
        "kl": "KL of the same to the reference, estimated by k1: mean over completions, in nats per completion.",
        "completion_tokens_mean": "Mean tokens of the same.",
    }
)
"""What an evaluation reports, with meaning and unit. On Prometheus each is rlhf_trainer_evaluation_<name>."""


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
