"""Masked arithmetic, and the argument checks that the algorithms share.

Padding may hold anything, NaN included. It is left out by selection, never by multiplying with a mask: 0 * NaN is NaN,
in the forward pass and in the gradient.
"""

from torch import Tensor


def select(x: Tensor, mask: Tensor) -> Tensor:
    """Returns x with zeros where mask is False. Those positions get a gradient of exactly zero, whatever they hold."""
    return x.masked_fill(~mask, 0.0)


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Returns the mean of x [...] over the positions where mask [...] is True, as a scalar.

    Raises: ValueError if the shapes differ or the mask selects nothing.
    """
    require_same_shape(x=x, mask=mask)
    require_tokens("mask", mask)
    return x[mask].mean()


def require_same_shape(**tensors: Tensor) -> None:
    """Raises ValueError, naming every argument with its shape, unless all shapes are equal."""
    if len({tensor.shape for tensor in tensors.values()}) > 1:
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"shapes differ: {shapes}; per-token tensors all cover the completion tokens alone")


def require_tokens(name: str, mask: Tensor) -> None:
    """Raises ValueError if the mask selects no token."""
    if not mask.any():
        raise ValueError(f"{name} selects no token; drop empty rollouts before the update")


def require_right_padded(name: str, mask: Tensor) -> None:
    """Raises ValueError unless every row of mask [B, T] is one or more True followed only by False."""
    if mask.dim() != 2 or not mask[:, :1].all() or (mask[:, 1:] & ~mask[:, :-1]).any():
        raise ValueError(f"{name} must be [B, T] with each row's completion tokens first and its padding after them")


def require_in_open_interval(name: str, value: float, low: float, high: float) -> None:
    """Raises ValueError unless low < value < high."""
    if not low < value < high:
        raise ValueError(f"{name} is {value}; it must be above {low} and below {high}")
