"""What is known of a batch before its losses: shaped rewards, and the first passes of all micro-batches and ranks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf.algorithms.kl import kl_estimate
from rlhf.algorithms.masking import masked_mean, select
from rlhf.algorithms.rewards import RunningMoments, clip_rewards, missing_stop_penalty, overlong_penalty
from rlhf.learning.algorithm import Estimates, Forward, Scored
from rlhf.learning.batch import Batch, MicroBatch
from rlhf.learning.config import RewardShapingConfig
from rlhf.learning.optimizer import require_finite
from rlhf.learning.ranks import Ranks, Share


class RewardShaper:
    """Shapes the rewards of one run; remembers what their running normalisation needs."""

    def __init__(self, config: RewardShapingConfig, max_completion_tokens: int) -> None:
        self._config = config
        self._max_completion_tokens = max_completion_tokens
        self._moments = RunningMoments()

    def shape(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Returns the shaped rewards [B] of a step, whose own rewards count in the running moments, and metrics."""
        config, rewards = self._config, batch.rewards
        clipped_fraction = 0.0
        if config.normalize == "running":
            self._moments.update(rewards)
            # While all rewards were equal there is no scale, and nothing to learn either.
            rewards = self._moments.normalize(rewards) if self._moments.std > 0 else rewards - self._moments.mean
        if config.clip is not None:
            rewards, clipped = clip_rewards(rewards, config.clip)
            clipped_fraction = float(clipped.float().mean())
        rewards = rewards + missing_stop_penalty(batch.stopped, config.missing_stop_penalty)
        if config.overlong_buffer_tokens > 0:
            rewards = rewards + config.overlong_penalty * overlong_penalty(
                batch.sequences.completion_lengths, self._max_completion_tokens, config.overlong_buffer_tokens
            )
        return rewards, {
            "shaped_reward_mean": float(rewards.mean()),
            "reward_clipped_fraction": clipped_fraction,
        }

    def state_dict(self) -> dict[str, float]:
        """Returns what load_state_dict restores exactly, also by way of JSON."""
        return self._moments.state_dict()

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Goes on where state_dict() was taken. Raises: KeyError or ValueError if it is none."""
        self._moments.load_state_dict(state)


def gather_scored(
    batch: Batch,
    shares: Sequence[Share[MicroBatch]],
    forwards: Sequence[Forward],
    values: Sequence[Tensor],
    ranks: Ranks,
    *,
    rewards: Tensor,
    kl_coef: float,
) -> Scored:
    """Returns the whole batch as [B, T], on every rank.

    Args:
        shares: this rank's micro-batches; forwards: their passes; values: a separate critic's of each, or none at all.
        rewards: [B], after shaping. kl_coef: of this step.
    Raises: NonFiniteError, on all ranks, if a model's numbers are not finite.
    """
    has_values = bool(values) or forwards[0].values is not None
    old_logprobs, entropies, old_values = (torch.zeros_like(batch.sampler_logprobs) for _ in range(3))
    for index, (share, forward) in enumerate(zip(shares, forwards, strict=True)):
        if share.weight == 0:
            continue  # another rank has it
        share.item.put(forward.logprobs.detach(), old_logprobs)
        if forward.entropies is not None:
            share.item.put(forward.entropies.detach(), entropies)
        value = values[index] if values else forward.values
        if value is not None:
            share.item.put(value.detach(), old_values)
    for tensor in (old_logprobs, entropies, old_values):
        ranks.sum_(tensor)
    require_finite("the sum of the policy's log-probabilities", old_logprobs.sum())
    require_finite("the sum of the critic's values", old_values.sum())
    return Scored(
        rewards=rewards,
        old_logprobs=old_logprobs,
        entropies=entropies,
        old_values=old_values if has_values else None,
        kl_coef=kl_coef,
    )


def describe_batch(batch: Batch, scored: Scored, estimates: Estimates) -> dict[str, float]:
    """Returns metrics (telemetry/step.py has their units) of all completions, whether they are trained on or not."""
    mask, old_logprobs = batch.completion_mask, scored.old_logprobs
    kl = select(kl_estimate(old_logprobs, batch.ref_logprobs, "k1"), mask)
    mismatch = (old_logprobs - batch.sampler_logprobs).abs()
    metrics = {
        "reward_mean": float(batch.rewards.mean()),
        "reward_std": float(batch.rewards.std(correction=0)),
        "kl": float(kl.sum(-1).mean()),
        "kl_per_token": float(kl.sum() / mask.sum()),
        "kl_coef": scored.kl_coef,
        "entropy": float(masked_mean(scored.entropies, mask)),
        "sampler_mismatch": float(masked_mean(mismatch, mask)),
        "sampler_mismatch_k3": float(masked_mean(kl_estimate(batch.sampler_logprobs, old_logprobs, "k3"), mask)),
    }
    if estimates.old_values is not None and estimates.returns is not None:
        metrics |= _describe_values(estimates.old_values, estimates.returns, estimates.mask)
    return metrics


def _describe_values(values: Tensor, returns: Tensor, mask: Tensor) -> dict[str, float]:
    if not mask.any():
        return {"value_mean": 0.0, "value_explained_variance": 0.0}
    variance = float(returns[mask].var(correction=0))
    errors = float((returns - values)[mask].var(correction=0))
    return {
        "value_mean": float(masked_mean(values, mask)),
        "value_explained_variance": 1.0 - errors / variance if variance > 0 else 0.0,
    }
