"""The metrics of a step put together, the file they are kept in, and Prometheus. What each means: step_metrics.py."""

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from statistics import fmean

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge

from rlhf.files import write_whole
from rlhf.statistics import spearman
from services.trainer.fleet.metrics import FleetMetrics
from services.trainer.fleet.push import FleetPush
from services.trainer.rollouts.collect import Collected
from services.trainer.telemetry.gauges import LateGauges, evaluation_gauges


def describe_step(
    collected: Collected,
    training: Mapping[str, float],
    names: Collection[str],
    *,
    policy_version: int,
    lags: Mapping[int, int],
    pushed: FleetPush,
    waited_seconds: float,
    generator_idle_fraction: float,
    seconds: float,
) -> dict[str, float]:
    """Returns the metrics of a step.

    Args:
        collected: its rollouts. training: what the update returned. names: those of step_metrics() for the run.
        policy_version: after the step. lags: how many tokens were how many versions older than the weights before it.
        pushed: the push that ended since the step before. waited_seconds: how long training waited for the rollouts.
        generator_idle_fraction: how long the policy services had nothing to sample. seconds: time of the whole step.
    """
    rollouts = [sample.rollout for sample in collected.samples]
    lengths = [len(rollout.completion_ids) for rollout in rollouts]
    spreads = [sample.spread for sample in collected.samples if sample.spread is not None]
    completion_tokens = sum(lengths)
    tokens = sum(rollout.num_tokens for rollout in rollouts)
    generate_seconds = collected.generate_seconds
    num_lagging = sum(lags.values())
    metrics = {
        **training,
        "reward_length_correlation": spearman([sample.reward for sample in collected.samples], lengths) or 0.0,
        "reward_spread_mean": fmean(spreads) if spreads else 0.0,
        "completion_tokens_mean": completion_tokens / len(rollouts),
        "stopped_fraction": sum(rollout.finish_reason == "stop" for rollout in rollouts) / len(rollouts),
        "rollouts": len(rollouts),
        "dropped_rollouts": collected.dropped.total(),
        "uniform_groups": collected.uniform_groups,
        "uniform_rollouts": collected.uniform_rollouts,
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "generate_seconds": generate_seconds,
        "generate_tokens_per_second": completion_tokens / generate_seconds if generate_seconds > 0 else 0.0,
        "score_wait_seconds": collected.score_wait_seconds,
        "reference_wait_seconds": collected.reference_wait_seconds,
        "policy_lag_mean": sum(lag * count for lag, count in lags.items()) / num_lagging if num_lagging else 0.0,
        "policy_lag_max": max(lags, default=0),
        "fleet_push_seconds": pushed.seconds,
        "fleet_push_pause_seconds": pushed.pause_seconds,
        "fleet_push_bytes": pushed.num_bytes,
        "fleet_push_changed_fraction": pushed.changed_fraction or 0.0,
        "generator_idle_fraction": generator_idle_fraction,
        "trainer_idle_fraction": min(waited_seconds / seconds, 1.0),
        "step_seconds": seconds,
        "policy_version": policy_version,
    }
    return {name: float(metrics[name]) for name in names}


class TrainerMetrics:
    """The newest step on Prometheus, and totals of the run. Tests pass their own registry."""

    def __init__(self, texts: Mapping[str, str], registry: CollectorRegistry = REGISTRY) -> None:
        """Args: texts: the metrics of the run with their meanings, as step_metrics() has them."""
        self.evaluation = evaluation_gauges(registry)
        self.fleet = FleetMetrics(registry)
        self._gauges = LateGauges("rlhf_trainer_", texts, registry)
        self._step = Gauge("rlhf_trainer_step", "Number of the last finished step.", registry=registry)
        self._trained_tokens = Counter("rlhf_trainer_trained_tokens_total", "Tokens trained on.", registry=registry)
        self._dropped = Counter(
            "rlhf_trainer_rollouts_dropped_total", "Rollouts not trained on, by reason.", ["reason"], registry=registry
        )

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes over a step that an earlier process finished, so that a resumed run begins where that one ended."""
        self._gauges.set(metrics)
        self._step.set(step)

    def observe(
        self, step: int, metrics: Mapping[str, float], dropped: Mapping[str, int], lags: Mapping[int, int]
    ) -> None:
        """Takes over a finished step: its metrics, its dropped rollouts by reason, and its tokens by lag."""
        self.show(step, metrics)
        self._trained_tokens.inc(metrics["tokens"])
        for reason, count in dropped.items():
            self._dropped.labels(reason).inc(count)
        self.fleet.policy_lag.add(lags)


class MetricsFile:
    """RUN_DIR/metrics.jsonl: one object a step, {"step": 1, "reward_mean": ..., ...}."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def truncate_after(self, step: int) -> None:
        """Removes the lines of later steps, which a resumed run takes again, and a torn last line."""
        lines = [json.dumps(row) for row in self.read() if row["step"] <= step]
        write_whole(self.path, "".join(f"{line}\n" for line in lines))

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a step, on disk when the call returns."""
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[dict[str, float]]:
        """Returns the steps so far, oldest first; none if there is no file. A torn last line is left out."""
        if not self.path.exists():
            return []
        rows = []
        for line in self.path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return rows
