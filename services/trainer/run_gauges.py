"""What Prometheus may know of a run besides its steps: how it stands, what it was asked for, and its disk."""

import math
import shutil
from collections.abc import Callable
from functools import partial
from typing import get_args

from prometheus_client import CollectorRegistry, Gauge

from rlhf_services.trainer.control import RunControl, RunState
from rlhf_services.trainer.online_config import OnlineRunConfig


def register_run_gauges(control: RunControl, config: OnlineRunConfig, registry: CollectorRegistry) -> None:
    """Puts the gauges of a run on its registry; what changes is asked for at every scrape."""

    def gauge(name: str, text: str, value: Callable[[], float]) -> None:
        Gauge(f"rlhf_trainer_{name}", text, registry=registry).set_function(value)

    info = Gauge("rlhf_trainer_run_info", "1, for the run and its algorithm.", ["run", "algorithm"], registry=registry)
    info.labels(control.run_name, control.algorithm).set(1)
    state = Gauge("rlhf_trainer_state", "1 for what the run is doing, 0 for the others.", ["state"], registry=registry)
    for each in get_args(RunState):
        state.labels(each).set_function(partial(_is_in, control, each))
    gauge("steps_planned", "Steps of the whole run.", lambda: control.num_steps)
    gauge(
        "last_step_timestamp_seconds",
        "When the last step ended, as Unix time; when this process began, while it has ended none.",
        lambda: control.last_step_time.timestamp(),
    )
    gauge("kl_budget", "KL past which somebody should look (watch.kl_budget).", lambda: config.watch.kl_budget)
    gauge("disk_free_bytes", "Free on the file system of run_dir; NaN if it is away.", lambda: _disk(config)[0])
    gauge("disk_size_bytes", "Size of the file system of run_dir; NaN if it is away.", lambda: _disk(config)[1])


def _is_in(control: RunControl, state: RunState) -> float:
    return float(control.state == state)


def _disk(config: OnlineRunConfig) -> tuple[float, float]:
    """Returns free and total bytes. A disk that is away must not cost the scrape all other metrics."""
    try:
        usage = shutil.disk_usage(config.run_dir)
    except OSError:
        return math.nan, math.nan
    return usage.free, usage.total
