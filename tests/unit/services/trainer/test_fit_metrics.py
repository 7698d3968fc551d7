"""An offline training's newest step on Prometheus."""

from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from rlhf.errors import ConfigError
from services.trainer.telemetry.gauges import FitMetrics, served
from tests.support.ports import free_port


def read(port: int) -> list[str]:
    return urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode().splitlines()


def test_the_newest_step_and_how_the_training_stands_can_be_read_while_it_lasts(tmp_path: Path) -> None:
    port = free_port()
    with served(FitMetrics("night", "SFT", 60), tmp_path, port) as metrics:
        assert not any(line.startswith("rlhf_trainer_step ") for line in read(port))
        metrics.observe(1, {"loss": 0.5, "heldout_loss": 0.75})
        metrics.observe(2, {"loss": 0.25})
        lines = read(port)
    for line in (
        "rlhf_trainer_step 2.0",
        "rlhf_trainer_loss 0.25",
        "rlhf_trainer_heldout_loss 0.75",
        "rlhf_trainer_steps_planned 60.0",
        'rlhf_trainer_run_info{algorithm="SFT",run="night"} 1.0',
        'rlhf_trainer_state{state="running"} 1.0',
    ):
        assert line in lines
    [last] = [line.split()[1] for line in lines if line.startswith("rlhf_trainer_last_step_timestamp_seconds ")]
    assert float(last) == metrics.last_step_time.timestamp()
    with pytest.raises(URLError):
        read(port)


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    port = free_port()
    with (
        served(FitMetrics("a", "SFT", 1), tmp_path, port),
        pytest.raises(ConfigError, match=f"server.metrics_port is {port}: already in use"),
        served(FitMetrics("b", "SFT", 1), tmp_path, port),
    ):
        pass


def test_without_a_port_nothing_is_served(tmp_path: Path) -> None:
    with served(FitMetrics("night", "SFT", 60), tmp_path, None) as metrics:
        metrics.observe(1, {"loss": 0.5})
