"""Advantage estimators: GAE with a critic, and the baselines of GRPO, RLOO and REINFORCE++ without one."""

from typing import Literal

import torch
from torch import Tensor

from rlhf.algorithms.masking import require_right_padded, require_same_shape, require_tokens, select


def gae(
    token_rewards: Tensor, values: Tensor, completion_mask: Tensor, gamma: float, gae_lambda: float
) -> tuple[Tensor, Tensor]:
    """Returns generalised advantage estimates, and the returns that are the targets of the critic.

    delta_t = token_rewards_t + gamma * V_{t+1} - V_t; A_t = delta_t + gamma * gae_lambda * A_{t+1}; returns = A + V.
    V and A are 0 after a completion's last token: the episode ends there.

    Args:
        token_rewards: [B, T]; padding may hold anything.
        values: [B, T], of the state before each token; padding may hold anything.
        completion_mask: [B, T] bool, right-padded, at least one token a row.
        gamma, gae_lambda: in [0, 1].
    Returns: (advantages, returns), [B, T] each, zeros at padding, no gradient.
    Raises: ValueError if shapes differ, a row is empty or not right-padded, or gamma or gae_lambda is out of range.
    Source: Schulman et al. 2015, arXiv:1506.02438, eq. 16.
    """
    require_same_shape(token_rewards=token_rewards, values=values, completion_mask=completion_mask)
    require_right_padded("completion_mask", completion_mask)
    _require_factor("gamma", gamma)
    _require_factor("gae_lambda", gae_lambda)
    rewards = select(token_rewards.detach(), completion_mask)
    # Padding is zero and follows the tokens of its row, so the backward recursion carries nothing out of it.
    values = select(values.detach(), completion_mask)
    next_values = torch.cat((values[:, 1:], torch.zeros_like(values[:, :1])), dim=1)
    deltas = rewards + gamma * next_values - values
    advantages = _discounted_sums(deltas, gamma * gae_lambda)
    return advantages, advantages + values


def whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Returns (x - mean) / sqrt(var + 1e-8), with mean and variance over the positions that the mask selects.

    Call it on the whole batch: the statistics of a micro-batch would make the result depend on the split.

    Args:
        x: [B, T]; padding may hold anything.
        mask: [B, T] bool.
        shift_mean: False scales only and keeps the mean.
    Returns: [B, T], zeros at padding. A single position, or equal values, give 0 (the mean if it is kept).
    Raises: ValueError if the shapes differ or the mask selects nothing.
    """
    require_same_shape(x=x, mask=mask)
    require_tokens("mask", mask)
    variance, mean = torch.var_mean(x[mask], correction=0)
    whitened = (select(x, mask) - mean) * torch.rsqrt(variance + 1e-8)
    return select(whitened if shift_mean else whitened + mean, mask)


def discounted_returns(token_rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """Returns the discounted return of each token: G_t = token_rewards_t + gamma * G_{t+1}, 0 past the last token.

    Args:
        token_rewards: [B, T]; padding may hold anything.
        mask: [B, T] bool, right-padded.
        gamma: in [0, 1].
    Returns: [B, T], zeros at padding, no gradient.
    Raises: ValueError if shapes differ, a row is empty or not right-padded, or gamma is out of range.
    Source: Hu 2025 (REINFORCE++), arXiv:2501.03262, with gamma 1.
    """
    require_same_shape(token_rewards=token_rewards, mask=mask)
    require_right_padded("mask", mask)
    _require_factor("gamma", gamma)
    return _discounted_sums(select(token_rewards.detach(), mask), gamma)


def group_relative(rewards: Tensor, group_ids: Tensor, normalize_std: bool = True) -> Tensor:
    """Returns GRPO's advantages: (r - mean) / (std + 1e-6) over the completions of one prompt, one per completion.

    Args:
        rewards: [B].
        group_ids: [B] int64, equal for completions of one prompt, in any order.
        normalize_std: False leaves the division out (Dr. GRPO). The std is that of a sample (n - 1).
    Returns: [B], no gradient; exactly 0 in a group whose rewards are all equal.
    Raises: ValueError if shapes differ or a group has only one completion.
    Source: Shao et al. 2024, arXiv:2402.03300, section 4.1.2; Liu et al. 2025, arXiv:2503.20783 (no std).
    """
    centered, groups, sizes = _center(rewards, group_ids)
    if not normalize_std:
        return centered
    variances = _group_sums(centered.square(), groups, sizes) / (sizes - 1)
    return centered / (variances.sqrt() + 1e-6)[groups]


def group_centered(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """Returns r - mean over the completions of one prompt: REINFORCE++'s baseline, to be whitened over the batch.

    Args, Returns and Raises: as in group_relative.
    Source: Hu 2025, arXiv:2501.03262 (REINFORCE++-baseline).
    """
    return _center(rewards, group_ids)[0]


def leave_one_out(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """Returns RLOO's advantages: r_i minus the mean reward of the other completions of the same prompt.

    Args, Returns and Raises: as in group_relative.
    Source: Ahmadian et al. 2024, arXiv:2402.14740, section 2.2.
    """
    centered, groups, sizes = _center(rewards, group_ids)
    # r_i - (sum - r_i) / (n - 1) = (r_i - mean) * n / (n - 1)
    return centered * (sizes / (sizes - 1))[groups]


def uniform_groups(rewards: Tensor, group_ids: Tensor) -> Tensor:
    """Returns which completions are in a group whose rewards are all equal, so that every advantage is 0: [B] bool.

    Args and Raises: as in group_relative. A group with a NaN is not uniform.
    """
    groups, sizes = _groups(rewards, group_ids)
    least, most = (
        _group_extremes(rewards.detach(), groups, sizes, "amin"),
        _group_extremes(rewards.detach(), groups, sizes, "amax"),
    )
    return (least == most)[groups]


def _discounted_sums(x: Tensor, factor: float) -> Tensor:
    """Returns S_t = x_t + factor * S_{t+1} of each row, 0 past the end: [B, T]."""
    sums = torch.zeros_like(x)
    running = torch.zeros_like(x[:, 0])
    for t in reversed(range(x.shape[1])):
        running = x[:, t] + factor * running
        sums[:, t] = running
    return sums


def _center(rewards: Tensor, group_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (r - mean of its group [B], index of each completion's group [B], group sizes [G])."""
    groups, sizes = _groups(rewards, group_ids)
    rewards = rewards.detach()
    # The group's minimum is subtracted first: equal rewards are then exactly 0. Rounding of the mean could otherwise
    # leave small differences, which a std of the same size would turn into advantages.
    rewards = rewards - _group_extremes(rewards, groups, sizes, "amin")[groups]
    means = _group_sums(rewards, groups, sizes) / sizes
    return rewards - means[groups], groups, sizes


def _groups(rewards: Tensor, group_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the index of each completion's group, [B] from 0, and the group sizes [G]."""
    require_same_shape(rewards=rewards, group_ids=group_ids)
    if rewards.dim() != 1 or len(rewards) == 0:
        raise ValueError(f"rewards has shape {list(rewards.shape)}; it must be [B], one reward a completion, B >= 1")
    ids, groups, sizes = torch.unique(group_ids, return_inverse=True, return_counts=True)
    if int(sizes.min()) < 2:
        lone = int(ids[sizes.argmin()])
        raise ValueError(
            f"group_ids has a single completion of group {lone}; sample at least 2 a group, or drop what is left of it"
        )
    return groups, sizes


def _group_sums(x: Tensor, groups: Tensor, sizes: Tensor) -> Tensor:
    """Returns the sum of each group, [B] -> [G]."""
    return torch.zeros(len(sizes), dtype=x.dtype, device=x.device).index_add(0, groups, x)


def _group_extremes(x: Tensor, groups: Tensor, sizes: Tensor, which: Literal["amin", "amax"]) -> Tensor:
    """Returns the minimum or maximum of each group, [B] -> [G]."""
    start = torch.zeros(len(sizes), dtype=x.dtype, device=x.device)
    return start.scatter_reduce(0, groups, x, which, include_self=False)


def _require_factor(name: str, factor: float) -> None:
    if not 0 <= factor <= 1:
        raise ValueError(f"{name} is {factor}; it must be in [0, 1]")
