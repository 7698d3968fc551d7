"""From scores to rewards: scaling by running statistics, clipping, and penalties for how a completion ended."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from rlhf.algorithms.masking import require_in_open_interval


class RunningMoments:
    """Mean and standard deviation of all values seen so far, independent of how they were cut into batches.

    Source: Chan et al. 1979, Stanford STAN-CS-79-773 (merging the sums of squares without cancellation).
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = 0.0
        self._squares = 0.0
        """Sum of the squared distances from the mean."""

    @property
    def std(self) -> float:
        """Population standard deviation (divided by the count) of all values seen; 0 before the second value."""
        return math.sqrt(self._squares / self.count) if self.count > 0 else 0.0

    def update(self, x: Tensor) -> None:
        """Adds the values of a tensor of any shape. Raises: ValueError if one is not finite."""
        if not x.isfinite().all():
            raise ValueError("x has a value that is not finite; drop that rollout instead of scaling rewards by it")
        if x.numel() == 0:
            return
        # In float64, and as Python numbers: JSON holds them exactly.
        values = x.detach().double().flatten()
        mean = float(values.mean())
        count = self.count + len(values)
        shift = mean - self.mean
        self._squares += float((values - mean).square().sum()) + shift**2 * self.count * len(values) / count
        self.mean += shift * len(values) / count
        self.count = count

    def normalize(self, x: Tensor, shift_mean: bool = True) -> Tensor:
        """Returns (x - mean) / (std + 1e-8) in x's dtype.

        Args:
            x: any shape.
            shift_mean: False divides only and keeps the mean.
        Raises: ValueError before two different values were seen, because the scale is unknown.
        """
        if self.std == 0.0:
            raise ValueError(f"count is {self.count} and std 0; update with rewards that differ before normalizing")
        return (x - self.mean if shift_mean else x) / (self.std + 1e-8)

    def state_dict(self) -> dict[str, float]:
        """Returns the state for load_state_dict. It survives JSON without loss."""
        return {"count": self.count, "mean": self.mean, "squares": self._squares}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restores the state of state_dict. Raises: KeyError or ValueError if it is not one."""
        count, mean, squares = int(state["count"]), float(state["mean"]), float(state["squares"])
        if not (count >= 0 and squares >= 0 and math.isfinite(mean) and math.isfinite(squares)):
            raise ValueError(
                f"count {count}, mean {mean}, squares {squares} are no running moments; load a saved state"
            )
        self.count, self.mean, self._squares = count, mean, squares


def clip_rewards(rewards: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Returns the rewards clipped to [-bound, bound], and which of them were clipped (NaN is not), [B] each.

    Args:
        rewards: [B].
        bound: above 0.
    Raises: ValueError if bound is not above 0.
    """
    require_in_open_interval("bound", bound, 0, math.inf)
    return rewards.clamp(-bound, bound), rewards.abs() > bound


def missing_stop_penalty(stopped: Tensor, penalty: float) -> Tensor:
    """Returns a term to add to the rewards: -penalty where a completion has no end-of-sequence token, else 0.

    Args:
        stopped: [B] bool, True where an end-of-sequence token was sampled.
        penalty: at least 0.
    Returns: [B] float32.
    Raises: ValueError if penalty is negative or not finite, or stopped is not bool.
    Source: Huang et al. 2024, arXiv:2403.17031.
    """
    if not 0 <= penalty < math.inf:
        raise ValueError(f"penalty is {penalty}; it must be at least 0 and finite: it is subtracted")
    if stopped.dtype != torch.bool:
        raise ValueError(f"stopped has dtype {stopped.dtype}; it must be bool, True where the end was sampled")
    return torch.zeros(stopped.shape, device=stopped.device).masked_fill(~stopped, -penalty)


def overlong_penalty(lengths: Tensor, max_completion_tokens: int, buffer_tokens: int) -> Tensor:
    """Returns a term to add to the rewards of completions near the length limit, falling from 0 to -1 over the buffer.

    With limit = max_completion_tokens: 0 up to limit - buffer_tokens tokens, then
    (limit - buffer_tokens - length) / buffer_tokens up to the limit, -1 beyond it.

    Args:
        lengths: [B] int64, tokens of each completion.
        max_completion_tokens: length at which the penalty reaches -1.
        buffer_tokens: tokens over which it grows, at least 1.
    Returns: [B] float32 in [-1, 0].
    Raises: ValueError unless 1 <= buffer_tokens <= max_completion_tokens.
    Source: Yu et al. 2025 (DAPO), arXiv:2503.14476, eq. 13.
    """
    if not 1 <= buffer_tokens <= max_completion_tokens:
        raise ValueError(
            f"buffer_tokens is {buffer_tokens}; it must be from 1 to max_completion_tokens, {max_completion_tokens}"
        )
    return ((max_completion_tokens - buffer_tokens - lengths) / buffer_tokens).clamp(-1.0, 0.0)
