"""KL divergence from the reference policy: estimators, the penalty in the reward, controllers of its coefficient."""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor

from rlhf.algorithms.masking import require_right_padded, require_same_shape, select

KlEstimator = Literal["k1", "k2", "k3"]

# Functions of r = log(policy / reference) of a token that the policy sampled.
_ESTIMATORS: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {
        "k1": lambda log_ratio: log_ratio,
        "k2": lambda log_ratio: log_ratio.square() / 2,
        "k3": lambda log_ratio: torch.expm1(-log_ratio) + log_ratio,
    }
)


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: KlEstimator = "k1") -> Tensor:
    """Returns an estimate of KL(policy || reference) at each token, from tokens that the policy sampled.

    With r = logprobs - ref_logprobs: k1 = r is unbiased, and single values may be negative; k2 = r^2 / 2 is biased and
    has little variance; k3 = exp(-r) - 1 + r is unbiased and never negative.

    Args:
        logprobs, ref_logprobs: [B, T] nats.
        estimator: "k1", "k2" or "k3".
    Returns: [B, T] nats. Padding is not masked.
    Raises: ValueError if the shapes differ or the estimator is unknown.
    Source: Schulman 2020, http://joschu.net/blog/kl-approx.html.
    """
    require_same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs)
    if estimator not in _ESTIMATORS:
        raise ValueError(f"estimator is '{estimator}'; it must be one of {', '.join(_ESTIMATORS)}")
    return _ESTIMATORS[estimator](logprobs - ref_logprobs)


def token_rewards(
    rewards: Tensor, logprobs: Tensor, ref_logprobs: Tensor, completion_mask: Tensor, kl_coef: float
) -> Tensor:
    """Returns the reward of each token: -kl_coef * k1 at every completion token, plus the score at the last token.

    Args:
        rewards: [B] scores of the whole completions.
        logprobs, ref_logprobs: [B, T] nats; padding may hold anything.
        completion_mask: [B, T] bool, right-padded, at least one token a row.
        kl_coef: reward per nat, at least 0.
    Returns: [B, T], zeros at padding, no gradient.
    Raises: ValueError if shapes differ, a row is empty or not right-padded, or kl_coef is negative.
    Source: Ziegler et al. 2019, arXiv:1909.08593, section 2.
    """
    require_same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs, completion_mask=completion_mask)
    require_same_shape(rewards=rewards, rows=completion_mask[:, 0])
    require_right_padded("completion_mask", completion_mask)
    if not kl_coef >= 0:
        raise ValueError(f"kl_coef is {kl_coef}; it must be at least 0")
    penalty = -kl_coef * kl_estimate(select(logprobs, completion_mask), select(ref_logprobs, completion_mask), "k1")
    last = completion_mask.sum(-1, keepdim=True) - 1
    return select(penalty, completion_mask).scatter_add(1, last, rewards[:, None].to(penalty.dtype)).detach()


class FixedKlController:
    """A constant coefficient of the KL penalty, in reward per nat."""

    def __init__(self, coef: float) -> None:
        """Raises: ValueError if coef is negative."""
        self.coef = _require_coef(coef)

    def update(self, kl: float, num_samples: int) -> None:
        """Leaves the coefficient unchanged."""

    def state_dict(self) -> dict[str, float]:
        """Returns the state for load_state_dict."""
        return {"coef": self.coef}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restores the state of state_dict. Raises: KeyError or ValueError if it is not one."""
        self.coef = _require_coef(state["coef"])


class AdaptiveKlController:
    """A coefficient of the KL penalty, in reward per nat, that moves the KL towards a target.

    Each update multiplies it by 1 + clip(kl / target - 1, -0.2, 0.2) * num_samples / horizon.

    Args:
        coef: initial value, above 0.
        target: nats per completion, above 0.
        horizon: completions, above 0.
    Source: Ziegler et al. 2019, arXiv:1909.08593, section 2.2.
    """

    MAX_ERROR = 0.2

    def __init__(self, coef: float, *, target: float, horizon: float) -> None:
        """Raises: ValueError if a value is out of range."""
        for name, value in (("coef", coef), ("target", target), ("horizon", horizon)):
            if not value > 0:
                raise ValueError(f"{name} of the adaptive KL controller is {value}; it must be above 0")
        self.coef = coef
        self.target = target
        self.horizon = horizon

    def update(self, kl: float, num_samples: int) -> None:
        """Updates coef from the KL of one batch.

        Args:
            kl: mean over the batch, in nats per completion.
            num_samples: completions in the batch, below 5 horizons: more could bring coef to 0 in one update.
        Raises: ValueError if kl is NaN or num_samples is out of range.
        """
        if math.isnan(kl):
            raise ValueError("kl is nan; the batch that it came from must not be trained on")
        if not 0 < num_samples * self.MAX_ERROR < self.horizon:
            raise ValueError(f"num_samples is {num_samples}; it must be above 0 and below 5 horizons of {self.horizon}")
        error = min(max(kl / self.target - 1, -self.MAX_ERROR), self.MAX_ERROR)
        self.coef *= 1 + error * num_samples / self.horizon

    def state_dict(self) -> dict[str, float]:
        """Returns the state for load_state_dict."""
        return {"coef": self.coef}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Restores the state of state_dict. Raises: KeyError or ValueError if it is not one."""
        self.coef = _require_coef(state["coef"])


def _require_coef(coef: float) -> float:
    if not coef >= 0:
        raise ValueError(f"coef of the KL controller is {coef}; it must be at least 0")
    return coef
