"""RLOO (Ahmadian et al. 2024, arXiv:2402.14740): REINFORCE against the mean of the prompt's other completions."""

from torch import Tensor

from rlhf.algorithms.advantages import leave_one_out
from rlhf.learning.algorithm import Scored
from rlhf.learning.batch import Batch
from rlhf.learning.policy_gradient import PolicyGradient, compare_in_groups


class Rloo(PolicyGradient):
    """One advantage for all tokens of a completion. With one optimizer step a batch nothing ever clips."""

    def advantages(self, batch: Batch, scored: Scored, mask: Tensor) -> tuple[Tensor, None]:
        """Returns the reward less the mean reward of the others."""
        rewards = self.completion_rewards(batch, scored)
        return compare_in_groups(leave_one_out, rewards, batch.group_ids, mask), None
