"""The metrics of a step: their file, Prometheus, and what the terminal shows."""

import io
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from rich.console import Console

from rlhf.learning.sample import Sample
from services.trainer.fleet.push import FleetPush
from services.trainer.rollouts.collect import Collected
from services.trainer.telemetry.step import STEP_METRICS, MetricsFile, TrainerMetrics, describe_step
from services.trainer.telemetry.terminal import COLUMNS, RunProgress
from tests.unit.rlhf.learning.test_batch import SAMPLES, make_sample

TRAINING = dict.fromkeys(STEP_METRICS, 0.125)


def make_step(samples: list[Sample] = SAMPLES) -> dict[str, float]:
    collected = Collected(samples=samples, dropped=Counter({"score_too_long": 2}), generate_seconds=2.0)
    return describe_step(
        collected,
        TRAINING,
        STEP_METRICS,
        policy_version=5,
        lags={0: 3, 1: 1, 3: 2},
        pushed=FleetPush(seconds=0.5, pause_seconds=0.25, num_bytes=1000, changed_fraction=0.01),
        waited_seconds=1.0,
        generator_idle_fraction=0.75,
        seconds=4.0,
    )


def test_a_step_has_every_metric_and_counts_what_was_trained_on() -> None:
    metrics = make_step()
    assert metrics.keys() == STEP_METRICS.keys()
    # Completions of 3, 1 and 2 tokens after prompts of 1, 2 and 3: 6 and 6 tokens, in 4 s of which 2 s sampling.
    assert metrics["completion_tokens_mean"] == 2.0
    assert metrics["tokens"] == 12.0
    assert metrics["tokens_per_second"] == 3.0
    assert metrics["generate_tokens_per_second"] == 3.0
    assert (metrics["rollouts"], metrics["dropped_rollouts"], metrics["stopped_fraction"]) == (3.0, 2.0, 1.0)
    assert (metrics["policy_version"], metrics["fleet_push_pause_seconds"]) == (5.0, 0.25)
    assert metrics["kl"] == 0.125
    assert (metrics["fleet_push_bytes"], metrics["fleet_push_changed_fraction"]) == (1000.0, 0.01)
    assert (metrics["generator_idle_fraction"], metrics["trainer_idle_fraction"]) == (0.75, 0.25)
    # Of 6 tokens one was sampled by the version before, and two by the one three before: 7 / 6.
    assert (metrics["policy_lag_mean"], metrics["policy_lag_max"]) == (pytest.approx(7 / 6), 3.0)


@pytest.mark.parametrize(
    ("completions", "expected"),
    [
        # (tokens, reward). Ranks of tokens 1, 2, 3, 4, of rewards 1, 3, 2, 4: 1 - 6 * (0 + 1 + 1 + 0) / (4 * 15) = 0.8.
        ([(1, -5.0), (2, 1.0), (30, 0.5), (400, 9.0)], 0.8),
        ([(3, 1.0), (2, 2.0), (1, 3.0)], -1.0),
        # Ranks of tokens 1.5, 1.5, 3, of rewards 1, 2, 3: 1.5 / sqrt(1.5 * 2).
        ([(1, 0.0), (1, 1.0), (2, 5.0)], 0.75**0.5),
        ([(1, 2.0), (2, 2.0)], 0.0),
        ([(2, 1.0), (2, 2.0)], 0.0),
        ([(2, 1.0)], 0.0),
    ],
)
def test_reward_and_length_are_compared_by_rank(completions: list[tuple[int, float]], expected: float) -> None:
    samples = [make_sample([5], [1] * tokens, reward) for tokens, reward in completions]
    assert make_step(samples)["reward_length_correlation"] == pytest.approx(expected)


def test_disagreement_is_the_mean_over_completions_that_have_one() -> None:
    spreads: list[dict[str, float]] = [{"reward": 0.5}, {}, {"reward": 1.0, "gold": 7.0}]
    samples = [replace(sample, spreads=spread) for sample, spread in zip(SAMPLES, spreads, strict=True)]
    assert make_step(samples)["reward_spread_mean"] == 0.75
    assert make_step(SAMPLES)["reward_spread_mean"] == 0.0


def test_steps_are_read_back_without_a_torn_line(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    assert file.read() == []
    file.append(1, {"kl": 0.5})
    file.append(2, {"kl": 0.25})
    with file.path.open("a") as torn:
        torn.write('{"step": 3, "k')
    assert file.read() == [{"step": 1, "kl": 0.5}, {"step": 2, "kl": 0.25}]


def test_a_resumed_run_forgets_the_steps_it_takes_again(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.jsonl")
    for step in (1, 2, 3):
        file.append(step, {"kl": step})
    file.truncate_after(2)
    file.append(3, {"kl": 30})
    assert [row["kl"] for row in file.read()] == [1, 2, 30]


def test_prometheus_has_the_newest_step_and_totals() -> None:
    registry = CollectorRegistry()
    metrics = TrainerMetrics(STEP_METRICS, registry)
    metrics.observe(1, make_step(), {"score_too_long": 2}, {0: 6})
    metrics.observe(2, make_step(), {}, {0: 4, 1: 2})
    assert registry.get_sample_value("rlhf_trainer_step") == 2
    assert registry.get_sample_value("rlhf_trainer_kl") == 0.125
    assert registry.get_sample_value("rlhf_trainer_trained_tokens_total") == 24
    assert registry.get_sample_value("rlhf_trainer_rollouts_dropped_total", {"reason": "score_too_long"}) == 2
    assert registry.get_sample_value("rlhf_trainer_policy_lag_bucket", {"le": "0.0"}) == 10
    assert registry.get_sample_value("rlhf_trainer_policy_lag_count") == 12


def test_before_the_first_step_there_is_no_reward_of_0_and_a_resumed_run_has_its_last_step() -> None:
    registry = CollectorRegistry()
    metrics = TrainerMetrics(STEP_METRICS, registry)
    assert registry.get_sample_value("rlhf_trainer_step") == 0
    assert registry.get_sample_value("rlhf_trainer_reward_mean") is None
    metrics.show(7, {"step": 7, "reward_mean": 0.5})
    assert registry.get_sample_value("rlhf_trainer_step") == 7
    assert registry.get_sample_value("rlhf_trainer_reward_mean") == 0.5
    assert registry.get_sample_value("rlhf_trainer_trained_tokens_total") == 0


def test_without_a_terminal_each_step_is_one_plain_line() -> None:
    output = io.StringIO()
    with RunProgress(Console(file=output, width=40), title="run", num_steps=9) as progress:
        progress.say("reward service at r:1 is back")
        progress.show(3, make_step())
    first, second = output.getvalue().splitlines()
    assert first == "reward service at r:1 is back"
    assert second.startswith("step 3/9  reward 0.125")


def test_on_a_terminal_there_is_a_table() -> None:
    output = io.StringIO()
    with RunProgress(Console(file=output, width=200, force_terminal=True), title="run", num_steps=9) as progress:
        progress.show(3, make_step())
    assert "3/9" in output.getvalue()
    assert "KL nats" in output.getvalue()


@pytest.mark.parametrize("column", COLUMNS)
def test_every_column_is_a_metric(column: tuple[str, str, str]) -> None:
    assert column[1] in STEP_METRICS
