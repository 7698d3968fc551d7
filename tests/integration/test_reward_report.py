"""The watch of a real reward service, and `rlhf reward`, which shows it."""

import asyncio
import json
import math
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf.client import RewardClient, ScoreItem
from rlhf_cli.local.services import LocalServices, read_services
from rlhf_cli.local.supervisor import Supervisor
from rlhf_cli.main import main
from rlhf_cli.models.fetch import fetch_model

Capture = pytest.CaptureFixture[str]

CONFIG = """
[scorer]
kind = "length"             # pays length / 200 up to 200 characters
target_length = 200
[watch]
baseline_items = 20
window_items = 20
heldout_fraction = 1.0
heldout_items = 20
[watch.heldout]
kind = "pattern"            # pays 1 for each "good"
pattern = "good"
pattern_mode = "count"
"""


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A services file naming one reward service."""
    folder = tmp_path_factory.mktemp("watched")
    (folder / "reward.toml").write_text(CONFIG)
    with Supervisor(folder / "logs", print, stop_grace_seconds=2.0) as supervisor:
        local = LocalServices(supervisor, folder / "services.toml", environment={"OMP_NUM_THREADS": "1"})
        entry = local.start("length", "reward", ["--config", str(folder / "reward.toml")])
        local.wait_ready([entry], 60.0, lambda states: None)
        yield str(folder / "services.toml")


@pytest.fixture(scope="module")
def hacked(services: str) -> str:
    """The same, after a caller's completions have become longer and not better; returns the services file."""
    # Rewards 0.1 and 0.2 (mean 0.15, deviation 0.05), held-out 1 and 3 (mean 2, deviation 1); then 0.3 and 0.4.
    score(services, [of_length(20, 1), of_length(40, 3)] * 10)
    score(services, [of_length(60, 1), of_length(80, 3)] * 10)
    end = time.monotonic() + 20
    while heldout_items(services) < 40:
        assert time.monotonic() < end, "the held-out scorer did not score 40 items within 20 s"
        time.sleep(0.05)
    return services


def of_length(length: int, num_good: int) -> ScoreItem:
    return ScoreItem.text("prompt", ("good " * num_good).ljust(length, "x"))


def score(services: str, items: list[ScoreItem]) -> None:
    async def call() -> None:
        async with RewardClient(read_services(Path(services))[0].target, caller="agent") as client:
            await client.score(items)

    asyncio.run(call())


def metrics(services: str) -> dict[str, float]:
    """What Prometheus would read, by series."""
    with urllib.request.urlopen(read_services(Path(services))[0].metrics_url, timeout=10) as answer:
        lines = [line for line in answer.read().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def heldout_items(services: str) -> float:
    return metrics(services)['rlhf_reward_watch_heldout_items_total{result="scored"}']


def json_lines(capsys: Capture) -> list[dict[str, object]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_report_has_the_numbers_of_what_was_scored(hacked: str, capsys: Capture) -> None:
    assert main(["reward", "report", "--services", hacked, "--json"]) == 0
    (report,) = json_lines(capsys)
    assert report["caller"] == "agent"
    assert (report["item_count"], report["window_item_count"], report["baseline_item_count"]) == (40, 20, 20)
    assert report["baseline_mean"] == pytest.approx(0.15)
    assert report["reward_mean"] == pytest.approx(0.35)
    assert report["reward_std"] == pytest.approx(0.05)
    # Bins below, at, between, at and above the two values: 0 10 0 10 0 became 0 0 0 0 20; a half is added to each.
    drift = 2 * (10 / 22.5) * math.log(10.5 / 0.5) + (20 / 22.5) * math.log(20.5 / 0.5)
    assert report["drift"] == pytest.approx(drift)
    assert report["length_correlation"] == pytest.approx(1.0)
    assert report["heldout_gap"] == pytest.approx(4.0)  # 0.2 more is four deviations; the held-out mean stays
    assert report["heldout_correlation"] == pytest.approx(1.0)
    warnings = report["warnings"]
    assert isinstance(warnings, list)
    assert [warning.split(":")[0] for warning in warnings] == [
        "the rewards have moved from a mean of 0.15 to 0.35",
        "longer completions earn more",
        "the reward has risen 4.00 standard deviations more than the held-out one, above 1 "
        "(watch.thresholds.heldout_gap)",
    ]


def test_the_same_numbers_are_on_the_metrics_port(hacked: str, capsys: Capture) -> None:
    assert main(["reward", "report", "--services", hacked, "--json"]) == 0
    (report,) = json_lines(capsys)
    seen = metrics(hacked)
    for name in ("mean", "drift", "length_correlation", "repetition_mean", "heldout_gap", "heldout_correlation"):
        series = f'rlhf_reward_watch_{name}{{caller="agent",model_version="{report["model_version"]}"}}'
        assert seen[series] == pytest.approx(report["reward_mean" if name == "mean" else name])


def test_the_table_shows_each_caller_and_what_looks_wrong(hacked: str, capsys: Capture) -> None:
    assert main(["reward", "report", "--services", hacked]) == 0
    out = capsys.readouterr().out
    version, headings, row, *warnings = out.splitlines()
    assert version.startswith("model version length-")
    assert headings.split() == ["caller", "items", "reward", "drift", "length", "repeats", "spread", "held-out"]
    assert row.split() == ["agent", "40", "+0.35", "±", "0.05", "6.01", "+1.00", "0%", "-", "+4.00,", "+1.00"]
    assert warnings[1].startswith(
        "agent: longer completions earn more: the rank correlation of reward and length, 1.00"
    )


def test_watching_goes_on_until_it_is_interrupted(hacked: str) -> None:
    command = [sys.executable, "-m", "rlhf_cli.main", "reward", "report", "--services", hacked]
    with subprocess.Popen([*command, "--json", "--watch", "--interval", "0.1"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        lines = [json.loads(process.stdout.readline()) for _ in range(3)]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    assert [line["item_count"] for line in lines] == [40, 40, 40]


def test_compare_says_which_completion_is_the_better_one(services: str, capsys: Capture) -> None:
    # Lengths 100 and 50 of 200: rewards 0.5 and 0.25. sigmoid(0.25) = 0.5622.
    arguments = ["--prompt", "p", "--first", "x" * 100, "--second", "x" * 50]
    assert main(["reward", "compare", "--services", services, *arguments]) == 0
    assert capsys.readouterr().out == (
        "the first is preferred with probability 0.5622\nfirst  +0.5000\nsecond +0.2500\n"
    )
    assert main(["reward", "compare", "--services", services, "--json", *arguments]) == 0
    (row,) = json_lines(capsys)
    assert row["probability"] == pytest.approx(1 / (1 + math.exp(-0.25)))


def test_a_service_of_a_rule_loads_no_weights(services: str, capsys: Capture) -> None:
    assert main(["reward", "load", "--services", services, "--path", "/nowhere"]) == 1
    assert "has no checkpoint to load" in capsys.readouterr().err


def test_load_swaps_the_model_and_says_what_was_served_before(tmp_path: Path, capsys: Capture) -> None:
    for number in (1, 2):
        fetch_model(f"tiny-reward:{number}", tmp_path / f"reward-{number}", print)
    (tmp_path / "reward.toml").write_text(
        f'scorer = {{kind = "model", path = "{tmp_path}/reward-1", dtype = "float32", device = "cpu"}}\n'
        f'models = {{allowed_roots = ["{tmp_path}"]}}\n'
    )
    with Supervisor(tmp_path / "logs", print, stop_grace_seconds=2.0) as supervisor:
        local = LocalServices(supervisor, tmp_path / "services.toml", environment={"OMP_NUM_THREADS": "1"})
        entry = local.start("model", "reward", ["--config", str(tmp_path / "reward.toml")])
        local.wait_ready([entry], 120.0, lambda states: None)
        before = asyncio.run(version_of(entry.target))
        capsys.readouterr()
        command = ["reward", "load", "--target", entry.target]
        assert main([*command, "--path", str(tmp_path / "reward-2"), "--json"]) == 0
        (loaded,) = json_lines(capsys)
        after = asyncio.run(version_of(entry.target))
        assert (loaded["previous_model_version"], loaded["model_version"]) == (before, after)
        assert before != after
        assert main([*command, "--path", str(tmp_path / "reward-1")]) == 0
        assert re.fullmatch(rf"serving {before} after \d+\.\d s, before that {after}\n", capsys.readouterr().out)
        assert main([*command, "--path", "/"]) == 1
        assert "models.allowed_roots" in capsys.readouterr().err


async def version_of(target: str) -> str:
    async with RewardClient(target) as client:
        return (await client.get_model()).model_version
