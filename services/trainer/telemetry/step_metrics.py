"""The metrics of a step, by what brings them about: names, meanings and units."""

from collections.abc import Mapping
from types import MappingProxyType

from rlhf.learning.config import RewardShapingConfig
from services.trainer.config.online import OnlineDpoRunConfig, OnlineRunConfig, PolicyGradientRunConfig, PpoRunConfig

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
