"""REINFORCE++ (Hu 2025, arXiv:2501.03262): returns of tokens, whitened over the batch, without a critic.

reinforce.baseline = "group" takes the mean reward of the prompt's completions off first (REINFORCE++-baseline).
"""

from typing import Literal

from torch import Tensor

from rlhf.algorithms.advantages import discounted_returns, group_centered, whiten
from rlhf.learning.algorithm import Scored
from rlhf.learning.batch import Batch
from rlhf.learning.config import PolicyGradientOptions
from rlhf.learning.policy_gradient import PolicyGradient, compare_in_groups


class Reinforce(PolicyGradient):
    """An advantage for each token: what is still to come, against the batch."""

    def __init__(
        self, options: PolicyGradientOptions, *, baseline: Literal["none", "group"] = "none", gamma: float = 1.0
    ) -> None:
        """Args: baseline: what is taken off the rewards first. gamma: discount per token."""
        super().__init__(options)
        self._baseline = baseline
        self._gamma = gamma

    def advantages(self, batch: Batch, scored: Scored, mask: Tensor) -> tuple[Tensor, None]:
        """Returns the whitened discounted sums of the KL-shaped token rewards."""
        rewards = scored.rewards
        if self._baseline == "group":
            rewards = compare_in_groups(group_centered, rewards, batch.group_ids, mask)[:, 0]
        token_rewards = self.token_rewards(batch, scored, rewards)
        returns = discounted_returns(token_rewards, batch.completion_mask, self._gamma)
        return whiten(returns, mask) if mask.any() else returns, None
