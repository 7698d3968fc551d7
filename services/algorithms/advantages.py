"""How much better than expected each token did."""

import torch
from torch import Tensor

from rlhf_services.algorithms.masking import require_right_padded, require_same_shape, require_tokens, select


def gae(
    token_rewards: Tensor, values: Tensor, completion_mask: Tensor, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Returns generalised advantage estimates and the returns that the critic is to predict.

    delta_t = token_rewards_t + gamma * V_{t+1} - V_t; A_t = delta_t + gamma * gae_lambda * A_{t+1}; returns = A + V.
    After a completion's last token V and A are 0: the episode is over.

    Args:
        token_rewards: [B, T]. values: [B, T], of the state before each token. Padding of both may hold anything.
        completion_mask: [B, T] bool, right-padded, at least one token a row.
        gamma, gae_lambda: in [0, 1].
    Returns: (advantages, returns), [B, T] each, zeros at padding, no gradient.
    Raises: ValueError if shapes differ, a row is empty or not right-padded, or a factor is out of range.
    Source: Schulman et al. 2015, arXiv:1506.02438, eq. 16.
    """
    require_same_shape(token_rewards=token_rewards, values=values, completion_mask=completion_mask)
    require_right_padded("completion_mask", completion_mask)
    for name, factor in (("gamma", gamma), ("gae_lambda", gae_lambda)):
        if not 0 <= factor <= 1:
            raise ValueError(f"{name} is {factor}; it must be in [0, 1]")
    rewards = select(token_rewards.detach(), completion_mask)
    # Zeros at padding, and the padding of a row only follows its tokens, so nothing flows from there to the left.
    values = select(values.detach(), completion_mask)
    next_values = torch.cat((values[:, 1:], torch.zeros_like(values[:, :1])), dim=1)
    deltas = rewards + gamma * next_values - values
    advantages = torch.zeros_like(deltas)
    running = torch.zeros_like(deltas[:, 0])
    for t in reversed(range(deltas.shape[1])):
        running = deltas[:, t] + gamma * gae_lambda * running
        advantages[:, t] = running
    return advantages, advantages + values


def whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Returns (x - mean) / sqrt(var + 1e-8) with mean and variance over the positions that mask selects.

    Give it the whole batch: statistics of a part of it would make the result depend on the split.

    Args:
        x: [B, T]; padding may hold anything. mask: [B, T] bool.
        shift_mean: False scales only and keeps the mean.
    Returns: [B, T], zeros at padding. A single position, or equal values, come out as 0 (as the mean if kept).
    Raises: ValueError if the shapes differ or mask selects nothing.
    """
    require_same_shape(x=x, mask=mask)
    require_tokens("mask", mask)
    variance, mean = torch.var_mean(x[mask], correction=0)
    whitened = (select(x, mask) - mean) * torch.rsqrt(variance + 1e-8)
    return select(whitened if shift_mean else whitened + mean, mask)
