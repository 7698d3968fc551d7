"""DPO's losses as functions of one number, and what all pairwise losses share."""

from collections.abc import Callable
from typing import Literal, get_args

from torch import Tensor
from torch.nn import functional

from rlhf.algorithms.masking import require_same_shape

DpoVariant = Literal["sigmoid", "ipo", "hinge", "robust"]


def negative_log_sigmoid(x: Tensor) -> Tensor:
    """Returns -log sigmoid(x) in the form that cannot overflow."""
    return functional.softplus(-x)


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


def dpo_variant(variant: DpoVariant, beta: float, label_smoothing: float) -> Callable[[Tensor], Tensor]:
    """Returns the loss of `preference.dpo_loss` as a function of the difference of the log-ratios, [P] -> [P].

    Raises: ValueError if the variant is unknown or has no such label_smoothing.
    """
    e = label_smoothing
    if not 0 <= e < 0.5:
        raise ValueError(f"label_smoothing is {e}; it must be in [0, 0.5), the share of labels that are wrong")
    if variant == "sigmoid":
        return lambda h: (1 - e) * negative_log_sigmoid(beta * h) + e * negative_log_sigmoid(-beta * h)
    if variant == "robust":
        return lambda h: ((1 - e) * negative_log_sigmoid(beta * h) - e * negative_log_sigmoid(-beta * h)) / (1 - 2 * e)
    if e != 0 and variant in ("hinge", "ipo"):
        raise ValueError(f"label_smoothing is {e}; variant '{variant}' has none: set it to 0, or use sigmoid or robust")
    if variant == "hinge":
        return lambda h: functional.relu(1 - beta * h)
    if variant == "ipo":
        return lambda h: (h - 1 / (2 * beta)).square()
    raise ValueError(f"variant is '{variant}'; it must be one of {', '.join(get_args(DpoVariant))}")
