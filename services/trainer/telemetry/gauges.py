"""What Prometheus may know of a run besides its steps: how it stands, what it was asked for, and its disk."""

import math
import shutil
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Protocol, get_args

from prometheus_client import CollectorRegistry, Gauge

from services.trainer.service.control import RunState


class Standing(Protocol):
    """How a run stands."""

    run_name: str
    algorithm: str
    num_steps: int
    """Of the whole run."""
    last_step_time: datetime
    """When the last step ended; the start of this process while it has ended none."""

    @property
    def state(self) -> RunState:
        """What the run is doing."""


def register_run_gauges(run: Standing, run_dir: Path, registry: CollectorRegistry) -> None:
    """Puts the gauges of a run on its registry; what changes is asked for at every scrape."""

    def gauge(name: str, text: str, value: Callable[[], float]) -> None:
        Gauge(f"rlhf_trainer_{name}", text, registry=registry).set_function(value)

    info = Gauge("rlhf_trainer_run_info", "1, for the run and its algorithm.", ["run", "algorithm"], registry=registry)
    info.labels(run.run_name, run.algorithm).set(1)
    state = Gauge("rlhf_trainer_state", "1 for what the run is doing, 0 for the others.", ["state"], registry=registry)
    for each in get_args(RunState):
        state.labels(each).set_function(partial(_is_in, run, each))
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


def _is_in(run: Standing, state: RunState) -> float:
    return float(run.state == state)


def _disk(run_dir: Path) -> tuple[float, float]:
    """Returns free and total bytes. A disk that is away must not cost the scrape all other metrics."""
    try:
        usage = shutil.disk_usage(run_dir)
    except OSError:
        return math.nan, math.nan
    return usage.free, usage.total
