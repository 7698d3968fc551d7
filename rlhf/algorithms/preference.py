"""Losses on preferences: of reward models, and of policies trained on pairs or on single judgements."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from rlhf.algorithms.masking import require_in_open_interval, require_same_shape
from rlhf.algorithms.variants import PAIR_VARIANTS, SMOOTHED_VARIANTS, VARIANTS, Variant, negative_log_sigmoid


@dataclass(frozen=True, slots=True)
class PreferenceLoss:
    """The loss and the implied rewards of each pair."""

    losses: Tensor
    """[P]. Carries gradient."""
    chosen_rewards: Tensor
    """[P], no gradient."""
    rejected_rewards: Tensor
    """[P], no gradient."""


@dataclass(frozen=True, slots=True)
class DesirabilityLoss:
    """The loss and the implied reward of each completion."""

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
    the number of pairs in the whole optimizer batch, so that it does not depend on micro-batches.

    Args:
        chosen_rewards, rejected_rewards: [P] scores (carry gradient).
        margin: [P], by how much the scores should differ; None is 0.
        center_coef: weight of the term that keeps the scores near mean 0, at least 0.
        target: [P] in [0, 1], the probability that the chosen one is preferred; None is 1.
    Returns: [P].
    Raises: ValueError if shapes differ, center_coef is negative, or a target is out of range.
    Source: Stiennon et al. 2020, arXiv:2009.01325; margin: Touvron et al. 2023, arXiv:2307.09288; center_coef:
    Eisenstein et al. 2023, arXiv:2312.09244; soft labels: Bai et al. 2022, arXiv:2212.08073.
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
        margins: [K, K]; [i, j] with i < j is the margin of i over j, the rest is not read. None is 0.
        center_coef: as in bradley_terry_loss.
    Returns: scalar.
    Raises: ValueError if there are fewer than 2 rewards, or margins has another shape.
    Source: Ouyang et al. 2022 (InstructGPT), arXiv:2203.02155, eq. 1. As separate batch elements the pairs would repeat
    completions, and the model would overfit.
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
    """Returns the loss of each pair as a function of h = (policy - ref of chosen) - (policy - ref of rejected).

    "sigmoid": -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h), e = label_smoothing (above 0: cDPO).
    "robust": (-(1 - e) log sigmoid(beta h) + e log sigmoid(-beta h)) / (1 - 2 e), unbiased if a share e is wrong.
    "hinge": max(0, 1 - beta h). "ipo": (h - 1 / (2 beta))^2 with each log-ratio divided by its completion's length.
    With a soft label t: t loss(h) + (1 - t) loss(-h).

    Args:
        policy_chosen_logps, policy_rejected_logps: [P] nats, summed over the completion's tokens (carry gradient).
        ref_chosen_logps, ref_rejected_logps: [P] nats, likewise under the reference.
        beta: strength of the regularisation towards the reference, above 0.
        variant: one of PAIR_VARIANTS of rlhf.algorithms.variants.
        label_smoothing: e in [0, 0.5), only for variants that take it.
        chosen_lengths, rejected_lengths: [P] tokens, at least 1; required by variants that average, else not read.
        target: [P] in [0, 1], the probability that the chosen one is preferred; None is 1.
    Returns: losses, and rewards beta * (policy - ref) on the summed log-probabilities, for every variant.
    Raises: ValueError if shapes differ, the variant is unknown, an argument is out of range, or lengths are missing.
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
    """Returns the loss of each completion that was judged on its own, with r = policy - ref.

    desirable_weight * (1 - sigmoid(beta (r - kl))) if it is desirable, else
    undesirable_weight * (1 - sigmoid(beta (kl - r))).

    Args:
        policy_logps: [N] nats, summed over the completion's tokens (carries gradient).
        ref_logps: [N] nats, likewise under the reference.
        is_desirable: [N] bool.
        kl: nats, the mean of r over the whole batch for completions paired with other prompts. It gets no gradient; a
            value below 0 counts as 0, because a divergence is not negative.
        beta: above 0.
        desirable_weight, undesirable_weight: at least 0. The paper recommends a ratio of weight times count, desirable
            over undesirable, from 1 to 4/3.
    Returns: losses, and rewards beta * r.
    Raises: ValueError if shapes differ, is_desirable is not bool, or an argument is out of range.
    Source: Ethayarajh et al. 2024, arXiv:2402.01306, without a constant per completion.
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
    # sigmoid(-x) is 1 - sigmoid(x) without cancellation.
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
        beta: above 0.
        margin: by how much the implied rewards should differ, at least 0; some frameworks set margin / beta.
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


def softened(loss: Callable[[Tensor], Tensor], x: Tensor, target: Tensor | None) -> Tensor:
    """Returns target * loss(x) + (1 - target) * loss(-x), [P]; loss(x) without a target.

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
    """Returns the row of a variant. Raises: ValueError if it is unknown or does not take this label_smoothing."""
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


def _log_odds(logps: Tensor) -> Tensor:
    # expm1 keeps its precision where the probability is almost 1.
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
