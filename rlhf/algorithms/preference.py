"""Losses on preferences: of reward models, and of policies that learn from pairs or from single judgements."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from rlhf.algorithms.masking import require_in_open_interval, require_same_shape
from rlhf.algorithms.variants import PAIR_VARIANTS, SMOOTHED_VARIANTS, VARIANTS, Variant, negative_log_sigmoid


def softened(loss: Callable[[Tensor], Tensor], x: Tensor, target: Tensor | None) -> Tensor:
    """Returns target * loss(x) + (1 - target) * loss(-x), [P]; loss(x) if there is no target.

    Raises: ValueError if the shapes differ or a target is not in [0, 1].
    """
    if target is None:
        return loss(x)
    require_same_shape(target=target, pairs=x)
    if not ((target >= 0) & (target <= 1)).all():
        raise ValueError(
            f"target holds values from {float(target.min())} to {float(target.max())}; all must be in [0, 1]"
        )
    return target * loss(x) + (1 - target) * loss(-x)


def _variant(name: str, label_smoothing: float) -> Variant:
    """Returns the row of a variant of dpo_loss. Raises: ValueError if there is none, or it takes no such smoothing."""
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(
            f"label_smoothing is {label_smoothing}; it must be in [0, 0.5), the share of labels that are wrong"
        )
    if name not in PAIR_VARIANTS:
        raise ValueError(f"variant is '{name}'; it must be one of {', '.join(PAIR_VARIANTS)}")
    variant = VARIANTS[name]
    if label_smoothing != 0 and not variant.takes_smoothing:
        raise ValueError(
            f"label_smoothing is {label_smoothing}; variant '{name}' has none: set it to 0, or use "
            f"{' or '.join(SMOOTHED_VARIANTS)}"
        )
    return variant


@dataclass(frozen=True, slots=True)
class PreferenceLoss:
    """The loss of each pair, and the rewards that the policy implies."""

    losses: Tensor
    """[P]. Carries gradient."""
    chosen_rewards: Tensor
    """[P], no gradient."""
    rejected_rewards: Tensor
    """[P], no gradient."""


@dataclass(frozen=True, slots=True)
class DesirabilityLoss:
    """The loss of each completion, and the reward that the policy implies."""

    losses: Tensor
    """[N]. Carries gradient."""
    rewards: Tensor
    """[N], no gradient."""


def bradley_terry_loss(
    chosen_rewards: Tensor,
    rejected_rewards: Tensor,
    margin: Tensor | None = None,
    center_coef: float = 0.0,
    target: Tensor | None = None,
) -> Tensor:
    """Returns the loss of each pair: -log sigmoid(d) + center_coef * (chosen + rejected)^2.

    d = chosen - rejected - margin. With a soft label t: -t log sigmoid(d) - (1 - t) log sigmoid(-d). Divide the sum by
    the pairs of the whole optimizer batch, and the result does not depend on micro-batches.

    Args:
        chosen_rewards, rejected_rewards: [P] scores (carry gradient).
        margin: [P], how much better the chosen one was said to be; None is 0.
        center_coef: weight of the pull of the scores towards mean 0, at least 0.
        target: [P] in [0, 1], the probability that the chosen one is preferred; None is 1.
    Returns: [P].
    Raises: ValueError if shapes differ, center_coef is negative, or a target is out of range.
    Source: Stiennon et al. 2020, arXiv:2009.01325; margin from Touvron et al. 2023, arXiv:2307.09288; the centring from
    Eisenstein et al. 2023, arXiv:2312.09244; soft labels from Bai et al. 2022, arXiv:2212.08073.
    """
    require_same_shape(chosen_rewards=chosen_rewards, rejected_rewards=rejected_rewards)
    difference = chosen_rewards - rejected_rewards
    if margin is not None:
        require_same_shape(chosen_rewards=chosen_rewards, margin=margin)
        difference = difference - margin
    if not center_coef >= 0:
        raise ValueError(f"center_coef is {center_coef}; it must be at least 0")
    losses = softened(negative_log_sigmoid, difference, target)
    if center_coef == 0:
        return losses
    return losses + center_coef * (chosen_rewards + rejected_rewards).square()


def ranking_loss(rewards: Tensor, margins: Tensor | None = None, center_coef: float = 0.0) -> Tensor:
    """Returns the mean bradley_terry_loss over all K(K-1)/2 pairs of one prompt's ranking: one batch element.

    Args:
        rewards: [K] scores of the completions, best first, K >= 2 (carries gradient).
        margins: [K, K], of which [i, j] with i < j is the margin of i over j; the rest is not read. None is 0.
        center_coef: as in bradley_terry_loss.
    Returns: scalar.
    Raises: ValueError if there are fewer than 2 rewards, or margins has another shape.
    Source: Ouyang et al. 2022 (InstructGPT), arXiv:2203.02155, eq. 1: all pairs together, for as pairs of their own the
    completions repeat and the model overfits.
    """
    if rewards.dim() != 1 or len(rewards) < 2:
        raise ValueError(f"rewards has shape {list(rewards.shape)}; a ranking is [K] with at least 2 completions")
    if margins is not None and margins.shape != (len(rewards), len(rewards)):
        raise ValueError(f"margins has shape {list(margins.shape)}; it must be [K, K] with K {len(rewards)}")
    better, worse = torch.triu_indices(len(rewards), len(rewards), offset=1, device=rewards.device)
    margin = None if margins is None else margins[better, worse]
    return bradley_terry_loss(rewards[better], rewards[worse], margin, center_coef).mean()


def dpo_loss(
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    ref_chosen_logps: Tensor,
    ref_rejected_logps: Tensor,
    beta: float = 0.1,
    variant: str = "sigmoid",
    label_smoothing: float = 0.0,
    chosen_lengths: Tensor | None = None,
    rejected_lengths: Tensor | None = None,
    target: Tensor | None = None,
) -> PreferenceLoss:
    """Returns the loss of each pair, of h = (policy - ref of the chosen) - (policy - ref of the rejected).

    "sigmoid": -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h), e = label_smoothing (above 0: cDPO).
    "robust": (-(1 - e) log sigmoid(beta h) + e log sigmoid(-beta h)) / (1 - 2 e), unbiased if e of the labels is wrong.
    "hinge": max(0, 1 - beta h). "ipo": (h - 1 / (2 beta))^2 with each log-ratio divided by its completion's length.
    With a soft label t: t loss(h) + (1 - t) loss(-h).

    Args:
        policy_..., ref_...: [P] nats, summed over the completion's tokens; the policy's carry gradient.
        beta: strength of the pull to the reference, above 0.
        label_smoothing: e in [0, 0.5), for "sigmoid" and "robust" alone.
        chosen_lengths, rejected_lengths: [P] tokens, at least 1; "ipo" needs them, the others do not read them.
        target: [P] in [0, 1], the probability that the chosen one is preferred; None is 1.
    Returns: losses, and rewards beta * (policy - ref) on the summed log-probabilities, for every variant.
    Raises: ValueError if shapes differ, the variant is unknown, an argument is out of range, or "ipo" lacks lengths.
    Source: Rafailov et al. 2023, arXiv:2305.18290, eq. 7; cDPO: Mitchell 2023, https://ericmitchell.ai/cdpo.pdf;
    robust: Chowdhury et al. 2024, arXiv:2403.00409; hinge: Zhao et al. 2023, arXiv:2305.10425; ipo: Azar et al. 2023,
    arXiv:2310.12036, eq. 17.
    """
    require_same_shape(
        policy_chosen_logps=policy_chosen_logps,
        policy_rejected_logps=policy_rejected_logps,
        ref_chosen_logps=ref_chosen_logps,
        ref_rejected_logps=ref_rejected_logps,
    )
    require_in_open_interval("beta", beta, 0, math.inf)
    row = _variant(variant, label_smoothing)
    assert row.loss is not None  # as of all PAIR_VARIANTS
    loss = partial(row.loss, beta=beta, e=label_smoothing)
    chosen, rejected = policy_chosen_logps - ref_chosen_logps, policy_rejected_logps - ref_rejected_logps
    rewards = beta * chosen.detach(), beta * rejected.detach()
    if row.averages:
        chosen = chosen / _required_lengths("chosen_lengths", chosen_lengths, chosen, variant)
        rejected = rejected / _required_lengths("rejected_lengths", rejected_lengths, rejected, variant)
    return PreferenceLoss(softened(loss, chosen - rejected, target), *rewards)


def kto_loss(
    policy_logps: Tensor,
    ref_logps: Tensor,
    is_desirable: Tensor,
    kl: Tensor | float,
    beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> DesirabilityLoss:
    """Returns the loss of each completion that was found good or bad by itself, with r = policy - ref.

    desirable_weight * (1 - sigmoid(beta (r - kl))), or undesirable_weight * (1 - sigmoid(beta (kl - r))).

    Args:
        policy_logps, ref_logps: [N] nats, summed over the completion's tokens; the policy's carry gradient.
        is_desirable: [N] bool.
        kl: nats, the mean of r over the whole batch with completions that belong to other prompts; gets no gradient,
            and below 0 counts as 0, which no divergence can be.
        beta: above 0. desirable_weight, undesirable_weight: at least 0; the paper wants weight times count to be from
            1 to 4/3 for desirable over undesirable.
    Returns: losses, and rewards beta * r.
    Raises: ValueError if shapes differ, is_desirable is not bool, or an argument is out of range.
    Source: Ethayarajh et al. 2024, arXiv:2402.01306, less a constant for each completion.
    """
    require_same_shape(policy_logps=policy_logps, ref_logps=ref_logps, is_desirable=is_desirable)
    require_in_open_interval("beta", beta, 0, math.inf)
    if is_desirable.dtype != torch.bool:
        raise ValueError(f"is_desirable has dtype {is_desirable.dtype}; it must be bool")
    for name, weight in (("desirable_weight", desirable_weight), ("undesirable_weight", undesirable_weight)):
        if not 0 <= weight < math.inf:
            raise ValueError(f"{name} is {weight}; it must be at least 0 and finite")
    log_ratio = policy_logps - ref_logps
    above = log_ratio - torch.as_tensor(kl, dtype=log_ratio.dtype, device=log_ratio.device).detach().clamp(min=0)
    # 1 - sigmoid(x) is sigmoid(-x), without the cancellation.
    losses = torch.where(
        is_desirable,
        desirable_weight * torch.sigmoid(-beta * above),
        undesirable_weight * torch.sigmoid(beta * above),
    )
    return DesirabilityLoss(losses, beta * log_ratio.detach())


def simpo_loss(chosen_avg: Tensor, rejected_avg: Tensor, beta: float = 2.0, margin: float = 1.0) -> PreferenceLoss:
    """Returns SimPO's loss of each pair, without a reference: -log sigmoid(beta (chosen - rejected) - margin).

    Args:
        chosen_avg, rejected_avg: [P] nats per token: log-probabilities divided by the completion's length.
        beta: above 0. margin: by how much the implied rewards are to differ, at least 0; peers set margin / beta.
    Returns: losses, and rewards beta * average.
    Raises: ValueError if shapes differ or an argument is out of range.
    Source: Meng et al. 2024, arXiv:2405.14734, eq. 6.
    """
    require_same_shape(chosen_avg=chosen_avg, rejected_avg=rejected_avg)
    require_in_open_interval("beta", beta, 0, math.inf)
    if not 0 <= margin < math.inf:
        raise ValueError(f"margin is {margin}; it must be at least 0 and finite")
    losses = negative_log_sigmoid(beta * (chosen_avg - rejected_avg) - margin)
    return PreferenceLoss(losses, beta * chosen_avg.detach(), beta * rejected_avg.detach())


def orpo_loss(chosen_avg: Tensor, rejected_avg: Tensor, odds_weight: float = 0.1) -> PreferenceLoss:
    """Returns ORPO's loss of each pair, without a reference: -chosen_avg - odds_weight * log sigmoid(log odds ratio).

    The log odds of an average a are a - log(1 - exp(a)); the first term is the chosen one's negative log-likelihood.

    Args:
        chosen_avg, rejected_avg: [P] nats per token, below 0: log-probabilities divided by the completion's length.
        odds_weight: lambda of the paper, above 0.
    Returns: losses, and rewards odds_weight * average.
    Raises: ValueError if shapes differ or odds_weight is not above 0.
    Source: Hong et al. 2024, arXiv:2403.07691, eq. 6 and 7.
    """
    require_same_shape(chosen_avg=chosen_avg, rejected_avg=rejected_avg)
    require_in_open_interval("odds_weight", odds_weight, 0, math.inf)
    odds_loss = negative_log_sigmoid(_log_odds(chosen_avg) - _log_odds(rejected_avg))
    rewards = odds_weight * chosen_avg.detach(), odds_weight * rejected_avg.detach()
    return PreferenceLoss(odds_weight * odds_loss - chosen_avg, *rewards)


def _log_odds(logps: Tensor) -> Tensor:
    # expm1 keeps its digits where the probability is almost 1.
    return logps - torch.log(-torch.expm1(logps))


def _required_lengths(name: str, lengths: Tensor | None, like: Tensor, variant: str) -> Tensor:
    if lengths is None:
        raise ValueError(
            f"{name} is None; variant '{variant}' averages over tokens and needs the lengths of the completions"
        )
    require_same_shape(**{name: lengths, "pairs": like})
    if not (lengths >= 1).all():
        raise ValueError(f"{name} has {int(lengths.min())}; every completion needs at least 1 token")
    return lengths
