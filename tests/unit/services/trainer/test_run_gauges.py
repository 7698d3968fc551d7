"""What Prometheus is told of a run besides its steps."""

import math
import shutil
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from services.trainer.service.control import RunControl
from services.trainer.telemetry.gauges import register_kl_budget, register_run_gauges

STATES = ("starting", "running", "paused", "waiting", "finished", "failed")


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def control(tmp_path: Path, registry: CollectorRegistry) -> RunControl:
    run_dir = tmp_path / "night"
    run_dir.mkdir()
    control = RunControl(run_dir.name, "grpo", 30)
    register_run_gauges(control, run_dir, registry)
    register_kl_budget(7.5, registry)
    return control


def states_of(registry: CollectorRegistry) -> dict[str, float | None]:
    return {state: registry.get_sample_value("rlhf_trainer_state", {"state": state}) for state in STATES}


async def test_one_state_is_1_and_follows_the_run(control: RunControl, registry: CollectorRegistry) -> None:
    assert states_of(registry) == {**dict.fromkeys(STATES, 0), "starting": 1}
    away = "reward service at r:1 is away"
    control.waiting_for = lambda: away
    assert states_of(registry) == {**dict.fromkeys(STATES, 0), "waiting": 1}
    await control.end("step 2: the policy loss is nan")
    assert states_of(registry) == {**dict.fromkeys(STATES, 0), "failed": 1}


def test_a_run_says_its_name_its_steps_and_its_budget(control: RunControl, registry: CollectorRegistry) -> None:
    assert registry.get_sample_value("rlhf_trainer_run_info", {"run": "night", "algorithm": "grpo"}) == 1
    assert registry.get_sample_value("rlhf_trainer_steps_planned") == 30
    assert registry.get_sample_value("rlhf_trainer_kl_budget") == 7.5


async def test_the_clock_of_the_last_step_begins_with_the_process(
    control: RunControl, registry: CollectorRegistry
) -> None:
    name = "rlhf_trainer_last_step_timestamp_seconds"
    assert registry.get_sample_value(name) == control.start_time.timestamp()
    await control.finish_step(1, 2, {})
    assert registry.get_sample_value(name) == control.last_step_time.timestamp() > control.start_time.timestamp()


def test_a_disk_that_is_away_costs_no_other_metric(
    control: RunControl, registry: CollectorRegistry, tmp_path: Path
) -> None:
    free, size = (registry.get_sample_value(f"rlhf_trainer_disk_{name}_bytes") for name in ("free", "size"))
    assert free is not None
    assert size is not None
    assert 0 < free < size == shutil.disk_usage(tmp_path).total
    (tmp_path / "night").rmdir()
    gone = registry.get_sample_value("rlhf_trainer_disk_free_bytes")
    assert gone is not None
    assert math.isnan(gone)
    assert registry.get_sample_value("rlhf_trainer_steps_planned") == 30
