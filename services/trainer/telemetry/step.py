"""The metrics of a step: names, meanings and units, how they are put together, their file, and Prometheus."""

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from statistics import fmean
from types import MappingProxyType

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge

from rlhf.files import write_whole
from rlhf.learning.config import RewardShapingConfig
from rlhf.statistics import spearman
from services.trainer.config.online import OnlineDpoRunConfig, OnlineRunConfig, PolicyGradientRunConfig, PpoRunConfig
from services.trainer.fleet.metrics import FleetMetrics
from services.trainer.fleet.push import FleetPush
from services.trainer.rollouts.collect import Collected
from services.trainer.telemetry.gauges import EVALUATION_METRICS, LateGauges


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
        self.evaluation = LateGauges("rlhf_trainer_evaluation_", EVALUATION_METRICS, registry)
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


_BATCH = {
    "reward_mean": "Mean reward of the step's completions, in the reward service's units.",
    "reward_std": "Standard deviation of the same.",
    "kl": "KL to the reference, estimated by k1: mean over completions, in nats per completion.",
    "kl_per_token": "The same, in nats per completion token.",
    "entropy": "Entropy of the policy's next-token distribution: mean over completion tokens, in nats.",
    "sampler_mismatch": "Mean |trainer's - policy service's log-probability| of a sampled token, in nats.",
    "sampler_mismatch_k3": "KL from the policy service's to the trainer's distribution, by k3: nats per token.",
    "untrained_fraction": "Share of completions without a part in the loss.",
}
_SHAPING = {
    "shaped_reward_mean": "Mean reward after normalisation, clipping and penalties.",
    "reward_clipped_fraction": "Share of completions whose reward was cut to reward.clip.",
}
_GROUPS = {
    "uniform_groups": "Groups of equal rewards that were left out, and replaced by others while rounds were left.",
    "uniform_rollouts": "Rollouts of those groups.",
}
_POLICY = {
    "policy_loss": "Loss of the policy, as loss.aggregation has it: mean over optimizer steps.",
    "approx_kl": "KL from the policy before the update to the one in training, by k3: nats per completion token.",
    "policy_grad_norm": "Global L2 norm of the policy's gradient before clipping, mean over optimizer steps.",
    "policy_learning_rate": "Learning rate of the policy's last optimizer step; 0 if none was taken.",
    "policy_steps": "Optimizer steps of the policy: fewer than planned after an early stop, 0 in a critic's warm-up.",
}
_POLICY_GRADIENT = {
    "kl_coef": "Weight of the KL to the reference in this step: reward, or loss, per nat.",
    "clip_fraction": "Share of trained tokens whose policy loss was decided by a clip.",
    "ratio_rejected_fraction": "Share of completions left out by loss.sequence_ratio_bound.",
    "importance_clamped_fraction": "Share of completion tokens whose importance weight was cut to loss.importance_cap.",
}
_CRITIC = {
    "value_loss": "Clipped value loss: mean over trained tokens and optimizer steps.",
    "value_clip_fraction": "Share of trained tokens whose value loss was decided by the clip.",
    "value_mean": "Mean of the critic's values before the update, in units of reward.",
    "value_explained_variance": "1 - Var(returns - values) / Var(returns), before the update.",
}
_SEPARATE_CRITIC = {
    "critic_grad_norm": "Global L2 norm of the critic's gradient before clipping, mean over optimizer steps.",
    "critic_learning_rate": "Learning rate of the critic's last optimizer step.",
}
_PTX = {"ptx_loss": "Negative log-likelihood of a demonstration's token, in nats: mean over optimizer steps."}
_DPO = {
    "pairs": "Pairs that were trained on.",
    "ties": "Prompts without a pair, because their completions got equal rewards.",
    "chosen_reward_mean": "Implicit reward, beta * (policy - reference), of chosen completions: mean over pairs.",
    "rejected_reward_mean": "The same of rejected ones.",
    "reward_margin": "The former less the latter.",
    "reward_accuracy": "Share of pairs whose chosen completion has the larger implicit reward.",
    "chosen_logprob_mean": "Log-probability of a chosen completion: mean over pairs, in nats.",
    "rejected_logprob_mean": "The same of rejected ones.",
}
_ROLLOUTS = {
    "reward_length_correlation": "Rank correlation (Spearman) of reward and tokens of a completion, -1 to 1; 0 where "
    "either is the same for all.",
    "reward_spread_mean": "Mean disagreement of the reward service's ensemble: standard deviation of its members' "
    "rewards of a completion. 0 where the service is no ensemble.",
    "completion_tokens_mean": "Mean tokens of a completion.",
    "stopped_fraction": "Share of completions that ended by a stop id, not by their length.",
    "rollouts": "Rollouts of the step, without those that were dropped or left out.",
    "dropped_rollouts": "Rollouts without a usable score or log-probability; not trained on.",
    "tokens": "Prompt and completion tokens of the rollouts.",
    "policy_version": "Version of the weights after the step.",
}
_LAG = {
    "policy_lag_mean": "Versions by which the weights that sampled a token were behind those in training: mean over "
    "completion tokens.",
    "policy_lag_max": "The most of any token; at most training.max_policy_lag.",
}
_TIMES = {
    "tokens_per_second": "Tokens per second of the whole step.",
    "generate_seconds": "Until the last rollout had arrived; 0 if the journal had all of them.",
    "generate_tokens_per_second": "Completion tokens sampled per second of that.",
    "score_wait_seconds": "From the last rollout to the last score.",
    "reference_wait_seconds": "From the last rollout to the last reference log-probabilities.",
    "logprobs_seconds": "Forward passes of the policy before the advantages.",
    "values_seconds": "Forward passes of a separate critic before the advantages.",
    "update_seconds": "Losses, backward passes and optimizer steps.",
    "fleet_push_seconds": "The weight push that ended since the step before: copies, digests, and until every policy "
    "service had it; 0 if there was none.",
    "fleet_push_pause_seconds": "How long that push kept a policy service from sampling.",
    "fleet_push_bytes": "What the trainer sent for it.",
    "fleet_push_changed_fraction": "Share of the elements that it changed; 0 where that is not known, as at first.",
    "generator_idle_fraction": "Share of the policy services' time since the step before without anything to sample.",
    "trainer_idle_fraction": "Share of the step in which training waited for its rollouts.",
    "step_seconds": "The whole step, without checkpoints.",
}
_PARTS = (
    _BATCH,
    _SHAPING,
    _GROUPS,
    _POLICY,
    _POLICY_GRADIENT,
    _CRITIC,
    _SEPARATE_CRITIC,
    _PTX,
    _DPO,
    _ROLLOUTS,
    _LAG,
    _TIMES,
)

STEP_METRICS: Mapping[str, str] = MappingProxyType({name: text for part in _PARTS for name, text in part.items()})
"""Every metric that a step can have, with its meaning and unit. On Prometheus each is rlhf_trainer_<name>."""


def step_metrics(config: OnlineRunConfig) -> Mapping[str, str]:
    """Returns the metrics that each step of a run has, with their meanings: no value_loss without a critic."""
    parts: list[Mapping[str, str]] = [_BATCH]
    if config.reward != RewardShapingConfig(mask_truncated=config.reward.mask_truncated):
        parts.append(_SHAPING)
    if config.groups.drop_uniform:
        parts.append(_GROUPS)
    parts.append(_POLICY)
    if isinstance(config, PolicyGradientRunConfig):
        parts.append(_POLICY_GRADIENT)
    if isinstance(config, PpoRunConfig):
        parts.append(_CRITIC)
        if config.critic.kind == "separate":
            parts.append(_SEPARATE_CRITIC)
    if isinstance(config, OnlineDpoRunConfig):
        parts.append(_DPO)
    if config.ptx.path is not None:
        parts.append(_PTX)
    parts.append(_ROLLOUTS)
    if config.training.max_policy_lag > 0:
        parts.append(_LAG)
    return {name: text for part in (*parts, _TIMES) for name, text in part.items()}
