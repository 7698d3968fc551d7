"""PPO's losses, token by token, and their reduction to one number that does not depend on how the batch was cut."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rlhf_services.algorithms.masking import require_in_open_interval, require_same_shape, require_tokens, select

AggregationMode = Literal["token-mean"]


@dataclass(frozen=True, slots=True)
class ClippedLoss:
    """A loss of each token, and where clipping decided it."""

    token_losses: Tensor
    """[B, T], zeros at padding. Carries gradient; `aggregate` reduces it."""
    clipped: Tensor
    """[B, T] bool: True where the clipped term was the larger, so that the token has no gradient. False at padding."""


def clipped_policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, completion_mask: Tensor, *, clip_eps: float = 0.2
) -> ClippedLoss:
    """Returns PPO's clipped surrogate of each token: -min(rho A, clip(rho, 1 - clip_eps, 1 + clip_eps) A).

    Args:
        logprobs: [B, T] nats under the policy in training (carries gradient).
        old_logprobs: [B, T] nats under the weights at the start of the update; rho = exp(logprobs - old_logprobs).
        advantages: [B, T], no gradient.
        completion_mask: [B, T] bool; what stands elsewhere is never read, even if NaN, and gets zero gradient.
        clip_eps: half-width of the trust interval around rho = 1, in (0, 1).
    Raises: ValueError if shapes differ, no token is selected, or clip_eps is out of range.
    Source: Schulman et al. 2017, arXiv:1707.06347, eq. 7.
    """
    require_same_shape(
        logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages, completion_mask=completion_mask
    )
    require_tokens("completion_mask", completion_mask)
    require_in_open_interval("clip_eps", clip_eps, 0, 1)
    advantages = select(advantages, completion_mask)
    ratio = (select(logprobs, completion_mask) - select(old_logprobs, completion_mask)).exp()
    unclipped = -ratio * advantages
    clipped = -ratio.clamp(1 - clip_eps, 1 + clip_eps) * advantages
    return ClippedLoss(torch.maximum(unclipped, clipped), clipped > unclipped)


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, completion_mask: Tensor, *, value_clip_eps: float = 0.2
) -> ClippedLoss:
    """Returns the critic's loss of each token: 1/2 max((V - R)^2, (clip(V, V_old - eps, V_old + eps) - R)^2).

    Args:
        values: [B, T] of the critic in training (carries gradient).
        old_values: [B, T] of the critic at the start of the update.
        returns: [B, T] to be predicted.
        completion_mask: [B, T] bool; what stands elsewhere is never read, even if NaN, and gets zero gradient.
        value_clip_eps: how far a value may move in one update and still be pulled, in units of value, above 0.
    Raises: ValueError if shapes differ, no token is selected, or value_clip_eps is not above 0.
    Source: the PPO implementation of OpenAI baselines; used by Stiennon et al. 2020, arXiv:2009.01325.
    """
    require_same_shape(values=values, old_values=old_values, returns=returns, completion_mask=completion_mask)
    require_tokens("completion_mask", completion_mask)
    require_in_open_interval("value_clip_eps", value_clip_eps, 0, float("inf"))
    values, old_values, returns = (select(x, completion_mask) for x in (values, old_values, returns))
    near_old = torch.clamp(values, old_values - value_clip_eps, old_values + value_clip_eps)
    unclipped = (values - returns).square() / 2
    clipped = (near_old - returns).square() / 2
    return ClippedLoss(torch.maximum(unclipped, clipped), clipped > unclipped)


def aggregate(
    token_losses: Tensor, mask: Tensor, mode: AggregationMode = "token-mean", *, num_tokens_global: int
) -> Tensor:
    """Returns a scalar whose sum over micro-batches (and ranks) is the loss of the whole optimizer batch.

    "token-mean": the sum over this micro-batch's tokens, divided by the token count of the whole batch, so every token
    weighs the same wherever the batch was cut.

    Args:
        token_losses: [B, T]; padding may hold anything. mask: [B, T] bool; may select nothing in a micro-batch.
        num_tokens_global: tokens in the whole optimizer batch, over all micro-batches and ranks; at least 1.
    Raises: ValueError if the shapes differ, the mode is unknown, or num_tokens_global is below 1.
    """
    require_same_shape(token_losses=token_losses, mask=mask)
    if mode != "token-mean":
        raise ValueError(f"mode is '{mode}'; it must be token-mean")
    if num_tokens_global < 1:
        raise ValueError(f"num_tokens_global is {num_tokens_global}; it must be at least 1")
    return select(token_losses, mask).sum() / num_tokens_global
