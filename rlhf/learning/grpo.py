"""GRPO (Shao et al. 2024, arXiv:2402.03300): how much better than the prompt's other completions, in their own spread.

Dr. GRPO (Liu et al. 2025, arXiv:2503.20783) is grpo.normalize_std = false with loss.aggregation =
"token-sum-over-constant": neither the difficulty of a prompt nor the length of a completion then weighs the loss.
"""

from functools import partial

from torch import Tensor

from rlhf.algorithms.advantages import group_relative
from rlhf.learning.algorithm import Scored
from rlhf.learning.batch import Batch
from rlhf.learning.config import PolicyGradientOptions
from rlhf.learning.policy_gradient import PolicyGradient, compare_in_groups


class Grpo(PolicyGradient):
    """One advantage for all tokens of a completion."""

    def __init__(self, options: PolicyGradientOptions, *, normalize_std: bool = True) -> None:
        super().__init__(options)
        self._compare = partial(group_relative, normalize_std=normalize_std)

    def advantages(self, batch: Batch, scored: Scored, mask: Tensor) -> tuple[Tensor, None]:
        """Returns (reward - mean of the group) / std of the group."""
        rewards = self.completion_rewards(batch, scored)
        return compare_in_groups(self._compare, rewards, batch.group_ids, mask), None
