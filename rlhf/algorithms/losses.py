"""PPO's losses per token, importance weights, and the reduction to a scalar that does not depend on micro-batches."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from rlhf.algorithms.masking import require_in_open_interval, require_same_shape, require_tokens, select

AggregationMode = Literal[
    "token-mean", "sequence-mean-token-sum", "sequence-mean-token-mean", "token-sum-over-constant"
]


@dataclass(frozen=True, slots=True)
class ClippedLoss:
    """The loss of each token, and where clipping determined it."""

    token_losses: Tensor
    """[B, T], zeros at padding. Carries gradient; `aggregate` reduces it."""
    clipped: Tensor
    """[B, T] bool: True where the clipped term was taken, so that the token has no gradient. False at padding."""


def clipped_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    completion_mask: Tensor,
    *,
    clip_eps_low: float = 0.2,
    clip_eps_high: float = 0.2,
    dual_clip: float | None = None,
) -> ClippedLoss:
    """Returns PPO's clipped surrogate of each token: -min(rho A, clip(rho, 1 - clip_eps_low, 1 + clip_eps_high) A).

    With dual_clip = c the loss of a token with negative advantage is at most -c A, however large its ratio is.

    Args:
        logprobs: [B, T] nats under the policy in training (carries gradient).
        old_logprobs: [B, T] nats under the weights at the start of the update; rho = exp(logprobs - old_logprobs).
        advantages: [B, T], no gradient.
        completion_mask: [B, T] bool; padding is never read, even if NaN, and gets zero gradient.
        clip_eps_low: the ratio is clipped below at 1 - clip_eps_low, in (0, 1).
        clip_eps_high: the ratio is clipped above at 1 + clip_eps_high, above 0; DAPO's "clip higher" is 0.28.
        dual_clip: c, above 1, usually 3; None leaves the loss unbounded for negative advantages.
    Raises: ValueError if shapes differ, no token is selected, or a bound is out of range.
    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7; the second clip from Ye et al. 2019, arXiv:1912.09729.
    """
    require_same_shape(
        logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages, completion_mask=completion_mask
    )
    require_tokens("completion_mask", completion_mask)
    require_in_open_interval("clip_eps_low", clip_eps_low, 0, 1)
    require_in_open_interval("clip_eps_high", clip_eps_high, 0, math.inf)
    if dual_clip is not None:
        require_in_open_interval("dual_clip", dual_clip, 1, math.inf)
    advantages = select(advantages, completion_mask).detach()
    ratio = (select(logprobs, completion_mask) - select(old_logprobs, completion_mask)).exp()
    unclipped = -ratio * advantages
    clipped = -ratio.clamp(1 - clip_eps_low, 1 + clip_eps_high) * advantages
    losses, is_clipped = torch.maximum(unclipped, clipped), clipped > unclipped
    if dual_clip is None:
        return ClippedLoss(losses, is_clipped)
    bound = torch.where(advantages < 0, -dual_clip * advantages, math.inf)
    return ClippedLoss(torch.minimum(losses, bound), is_clipped | (bound < losses))


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, completion_mask: Tensor, *, value_clip_eps: float = 0.2
) -> ClippedLoss:
    """Returns the critic's loss at each token: 1/2 max((V - R)^2, (clip(V, V_old - eps, V_old + eps) - R)^2).

    Args:
        values: [B, T] of the critic in training (carries gradient).
        old_values: [B, T] of the critic at the start of the update.
        returns: [B, T], the targets.
        completion_mask: [B, T] bool; padding is never read, even if NaN, and gets zero gradient.
        value_clip_eps: eps, how far a value may move in one update before clipping, above 0.
    Raises: ValueError if shapes differ, no token is selected, or value_clip_eps is not above 0.
    Source: the PPO implementation of OpenAI baselines; used by Stiennon et al. 2020, arXiv:2009.01325.
    """
    require_same_shape(values=values, old_values=old_values, returns=returns, completion_mask=completion_mask)
    require_tokens("completion_mask", completion_mask)
    require_in_open_interval("value_clip_eps", value_clip_eps, 0, math.inf)
    values, old_values, returns = (select(x, completion_mask) for x in (values, old_values, returns))
    near_old = torch.clamp(values, old_values - value_clip_eps, old_values + value_clip_eps)
    unclipped = (values - returns).square() / 2
    clipped = (near_old - returns).square() / 2
    return ClippedLoss(torch.maximum(unclipped, clipped), clipped > unclipped)


def entropy_bonus(entropies: Tensor, mask: Tensor) -> Tensor:
    """Returns minus the entropy of each token, to be added to the policy loss times a coefficient.

    Args:
        entropies: [B, T] nats (carries gradient); padding may hold anything.
        mask: [B, T] bool.
    Returns: [B, T], zeros at padding; `aggregate` reduces it.
    Raises: ValueError if the shapes differ.
    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 9.
    """
    require_same_shape(entropies=entropies, mask=mask)
    return -select(entropies, mask)


def truncated_importance_weights(
    old_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, cap: float = 2.0
) -> tuple[Tensor, Tensor]:
    """Returns the weight of each token's loss that corrects for older sampling weights: min(exp(lo - ls), cap).

    lo is old_logprobs, ls is sampler_logprobs. clipped_policy_loss still clips around old_logprobs (decoupled PPO).

    Args:
        old_logprobs: [B, T] nats, computed by the trainer with the weights at the start of the update.
        sampler_logprobs: [B, T] nats, as reported by the policy service when it sampled.
        mask: [B, T] bool; padding may hold anything.
        cap: the largest weight, above 0.
    Returns: (weights [B, T], zeros at padding, no gradient; clamped [B, T] bool, True where the cap applied).
    Raises: ValueError if shapes differ or cap is not above 0.
    Source: Espeholt et al. 2018, arXiv:1802.01561 (the truncation); Fu et al. 2025, arXiv:2505.24298 (decoupled).
    """
    require_same_shape(old_logprobs=old_logprobs, sampler_logprobs=sampler_logprobs, mask=mask)
    require_in_open_interval("cap", cap, 0, math.inf)
    ratio = select(_log_ratio(old_logprobs, sampler_logprobs, mask).exp(), mask)
    return ratio.clamp(max=cap), ratio > cap


def sequence_ratio_mask(old_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, bound: float) -> Tensor:
    """Returns which completions to keep: those whose geometric mean ratio exp(mean(lo - ls)) is in [1/bound, bound].

    Args:
        old_logprobs, sampler_logprobs: [B, T] nats, as in truncated_importance_weights.
        mask: [B, T] bool; padding may hold anything.
        bound: above 1.
    Returns: [B] bool. True for an empty completion, and for one with a NaN, so that the NaN shows in the loss.
    Raises: ValueError if shapes differ or bound is not above 1.
    """
    require_same_shape(old_logprobs=old_logprobs, sampler_logprobs=sampler_logprobs, mask=mask)
    require_in_open_interval("bound", bound, 1, math.inf)
    log_ratio = _log_ratio(old_logprobs, sampler_logprobs, mask).sum(-1) / mask.sum(-1).clamp(min=1)
    return ~(log_ratio.abs() > math.log(bound))


def aggregate(
    token_losses: Tensor,
    mask: Tensor,
    mode: AggregationMode = "token-mean",
    *,
    num_tokens_global: int | None = None,
    num_sequences_global: int | None = None,
    max_completion_tokens: int | None = None,
) -> Tensor:
    """Returns a scalar whose sum over micro-batches (and ranks) is the loss of the whole optimizer batch.

    "token-mean": sum over all tokens / num_tokens_global; every token has the same weight (DAPO, arXiv:2503.14476).
    "sequence-mean-token-sum": sum over all tokens / num_sequences_global; the weighting of the log-likelihood.
    "sequence-mean-token-mean": sum of the sequences' means / num_sequences_global (GRPO, arXiv:2402.03300).
    "token-sum-over-constant": sum over all tokens / (num_sequences_global * max_completion_tokens); the divisor does
    not depend on the lengths (Dr. GRPO, arXiv:2503.20783).

    Args:
        token_losses: [B, T]; padding may hold anything.
        mask: [B, T] bool; may select nothing in a micro-batch.
        mode: how tokens and sequences are weighted.
        num_tokens_global, num_sequences_global: counts of the whole optimizer batch, over all micro-batches and ranks.
        max_completion_tokens: the limit that completions were sampled with.
    Raises: ValueError if the shapes differ, the mode is unknown, or a count that the mode needs is missing or below 1.
    """
    require_same_shape(token_losses=token_losses, mask=mask)
    if mode not in get_args(AggregationMode):
        raise ValueError(f"mode is '{mode}'; it must be one of {', '.join(get_args(AggregationMode))}")
    sums = select(token_losses, mask).sum(-1)
    if mode == "token-mean":
        return sums.sum() / _required_count(mode, "num_tokens_global", num_tokens_global)
    num_sequences = _required_count(mode, "num_sequences_global", num_sequences_global)
    if mode == "sequence-mean-token-sum":
        return sums.sum() / num_sequences
    if mode == "sequence-mean-token-mean":
        return (sums / mask.sum(-1).clamp(min=1)).sum() / num_sequences
    return sums.sum() / (num_sequences * _required_count(mode, "max_completion_tokens", max_completion_tokens))


def _required_count(mode: str, name: str, count: int | None) -> int:
    if count is None or count < 1:
        raise ValueError(f"{name} is {count}; mode '{mode}' needs it, of the whole optimizer batch, at least 1")
    return count


def _log_ratio(old_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Returns old - sampler log-probabilities, [B, T] nats, zeros at padding, no gradient."""
    return (select(old_logprobs, mask) - select(sampler_logprobs, mask)).detach()
