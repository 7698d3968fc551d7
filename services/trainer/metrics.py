"""The metrics of a PPO step: their names and units, the file they are kept in, and Prometheus."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge

from rlhf_services.trainer.rollouts.collect import Collected
from rlhf_services.trainer.rollouts.publish import Publisher

STEP_METRICS: Mapping[str, str] = MappingProxyType(
    {
        "reward_mean": "Mean reward of the step's completions, in the reward service's units.",
        "reward_std": "Standard deviation of the same.",
        "kl": "KL to the reference, estimated by k1: mean over completions, in nats per completion.",
        "kl_per_token": "The same, in nats per completion token.",
        "kl_coef": "Reward lost per nat of KL in this step.",
        "entropy": "Entropy of the policy's next-token distribution: mean over completion tokens, in nats.",
        "policy_loss": "Clipped policy loss, mean over completion tokens and optimizer steps.",
        "value_loss": "Clipped value loss, mean over completion tokens and optimizer steps.",
        "clip_fraction": "Share of completion tokens whose policy loss was decided by the clip.",
        "value_clip_fraction": "Share of completion tokens whose value loss was decided by the clip.",
        "approx_kl": "KL from the policy before the update to the one in training, by k3: nats per completion token.",
        "policy_grad_norm": "Global L2 norm of the policy's gradient before clipping, mean over optimizer steps.",
        "critic_grad_norm": "The same of the critic.",
        "policy_learning_rate": "Learning rate of the policy's last optimizer step.",
        "critic_learning_rate": "The same of the critic.",
        "value_mean": "Mean of the critic's values before the update, in units of reward.",
        "value_explained_variance": "1 - Var(returns - values) / Var(returns), before the update.",
        "sampler_mismatch": "Mean |trainer's - policy service's log-probability| of a sampled token, in nats.",
        "sampler_mismatch_k3": "KL from the policy service's to the trainer's distribution, by k3: nats per token.",
        "completion_tokens_mean": "Mean tokens of a completion.",
        "stopped_fraction": "Share of completions that ended by a stop id, not by their length.",
        "rollouts": "Rollouts that were trained on.",
        "dropped_rollouts": "Rollouts without a usable score or log-probability; not trained on.",
        "tokens": "Prompt and completion tokens that were trained on.",
        "tokens_per_second": "The same per second of the whole step.",
        "generate_seconds": "Until the last rollout had arrived.",
        "generate_tokens_per_second": "Completion tokens sampled per second of that.",
        "score_wait_seconds": "From the last rollout to the last score.",
        "reference_wait_seconds": "From the last rollout to the last reference log-probabilities.",
        "logprobs_seconds": "Forward passes of the policy before the advantages.",
        "values_seconds": "Forward passes of the critic before the advantages.",
        "update_seconds": "Losses, backward passes and optimizer steps.",
        "publish_seconds": "Digests and weight pushes, to every policy service.",
        "publish_pause_seconds": "How long a push kept a policy service from sampling.",
        "step_seconds": "The whole step, without checkpoints.",
        "policy_version": "Version of the weights after the step.",
    }
)
"""Every metric of a step, with its meaning and unit. On Prometheus each is rlhf_trainer_<name>."""


def describe_step(
    collected: Collected, training: Mapping[str, float], publisher: Publisher, *, publish_seconds: float, seconds: float
) -> dict[str, float]:
    """Returns all metrics of a step.

    Args:
        collected: its rollouts. training: what the update returned. publisher: after its push.
        publish_seconds: time of that push. seconds: time of the whole step.
    """
    rollouts = [sample.rollout for sample in collected.samples]
    completion_tokens = sum(len(rollout.completion_ids) for rollout in rollouts)
    tokens = sum(rollout.num_tokens for rollout in rollouts)
    metrics = {
        **training,
        "completion_tokens_mean": completion_tokens / len(rollouts),
        "stopped_fraction": sum(rollout.finish_reason == "stop" for rollout in rollouts) / len(rollouts),
        "rollouts": len(rollouts),
        "dropped_rollouts": collected.dropped.total(),
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "generate_seconds": collected.generate_seconds,
        "generate_tokens_per_second": completion_tokens / collected.generate_seconds,
        "score_wait_seconds": collected.score_wait_seconds,
        "reference_wait_seconds": collected.reference_wait_seconds,
        "publish_seconds": publish_seconds,
        "publish_pause_seconds": publisher.pause_seconds,
        "step_seconds": seconds,
        "policy_version": publisher.policy_version,
    }
    return {name: float(metrics[name]) for name in STEP_METRICS}


class TrainerMetrics:
    """The newest step on Prometheus, and totals of the run. Tests pass their own registry."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._gauges = {
            name: Gauge(f"rlhf_trainer_{name}", text, registry=registry) for name, text in STEP_METRICS.items()
        }
        self._step = Gauge("rlhf_trainer_step", "Number of the last finished step.", registry=registry)
        self._trained_tokens = Counter("rlhf_trainer_trained_tokens_total", "Tokens trained on.", registry=registry)
        self._dropped = Counter(
            "rlhf_trainer_rollouts_dropped_total", "Rollouts not trained on, by reason.", ["reason"], registry=registry
        )

    def observe(self, step: int, metrics: Mapping[str, float], dropped: Mapping[str, int]) -> None:
        """Takes over a finished step: its metrics, and its dropped rollouts by reason."""
        for name, gauge in self._gauges.items():
            gauge.set(metrics[name])
        self._step.set(step)
        self._trained_tokens.inc(metrics["tokens"])
        for reason, count in dropped.items():
            self._dropped.labels(reason).inc(count)


class MetricsFile:
    """RUN_DIR/metrics.jsonl: one object a step, {"step": 1, "reward_mean": ..., ...}."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def truncate_after(self, step: int) -> None:
        """Removes the lines of later steps, which a resumed run takes again, and a torn last line."""
        lines = [json.dumps(row) for row in self.read() if row["step"] <= step]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(f"{line}\n" for line in lines))
        temporary.replace(self.path)

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
