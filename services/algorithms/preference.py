"""Losses on pairs of which one was preferred."""

from torch import Tensor
from torch.nn import functional

from rlhf_services.algorithms.masking import require_same_shape


def bradley_terry_loss(
    chosen_rewards: Tensor, rejected_rewards: Tensor, margin: Tensor | None = None, center_coef: float = 0.0
) -> Tensor:
    """Returns the loss of each pair: -log sigmoid(chosen - rejected - margin) + center_coef * (chosen + rejected)^2.

    Divide its sum by the pairs of the whole optimizer batch, and the result does not depend on micro-batches.

    Args:
        chosen_rewards, rejected_rewards: [P] scores (carry gradient).
        margin: [P], how much better the chosen one was said to be; None is 0.
        center_coef: weight of the pull of the scores towards mean 0, at least 0.
    Returns: [P].
    Raises: ValueError if shapes differ or center_coef is negative.
    Source: Stiennon et al. 2020, arXiv:2009.01325; the centring from Eisenstein et al. 2023, arXiv:2312.09244.
    """
    require_same_shape(chosen_rewards=chosen_rewards, rejected_rewards=rejected_rewards)
    difference = chosen_rewards - rejected_rewards
    if margin is not None:
        require_same_shape(chosen_rewards=chosen_rewards, margin=margin)
        difference = difference - margin
    if not center_coef >= 0:
        raise ValueError(f"center_coef is {center_coef}; it must be at least 0")
    losses = functional.softplus(-difference)
    if center_coef == 0:
        return losses
    return losses + center_coef * (chosen_rewards + rejected_rewards).square()
