"""Online DPO (Guo et al. 2024, arXiv:2402.04792): the policy's own completions, in pairs that the rewards decide.

The best and the worst completion of a prompt are its pair. A prompt whose rewards are all equal has none: a tie.
"""

from functools import partial

import torch
from torch import Tensor

from rlhf.algorithms.logprobs import sequence_logprobs
from rlhf.algorithms.preference import dpo_loss
from rlhf.learning.algorithm import Estimates, Forward, Scored
from rlhf.learning.batch import Batch, MicroBatch
from rlhf.learning.policy_gradient import approx_kl
from rlhf.learning.steps import BatchSize, Totals


class OnlineDpo:
    """A DPO step on summed log-probabilities, against the reference's that came with the rollouts."""

    def __init__(
        self,
        *,
        beta: float = 0.1,
        variant: str = "sigmoid",
        label_smoothing: float = 0.0,
        mask_truncated: bool = False,
    ) -> None:
        """Args: beta, variant, label_smoothing: as dpo_loss has them. mask_truncated: pair no cut completions."""
        self._pair_loss = partial(dpo_loss, beta=beta, variant=variant, label_smoothing=label_smoothing)
        self._mask_truncated = mask_truncated

    def units(self, batch: Batch) -> list[list[int]]:
        """Returns the rows of each prompt."""
        groups: dict[int, list[int]] = {}
        for row, group in enumerate(batch.group_ids.tolist()):
            groups.setdefault(group, []).append(row)
        return list(groups.values())

    def estimate(self, batch: Batch, scored: Scored) -> Estimates:
        """Returns "advantages" of +1 for the chosen and -1 for the rejected completion of each pair."""
        signs = torch.zeros_like(scored.rewards)
        num_ties = 0
        units = self.units(batch)
        for unit in units:
            rows = [row for row in unit if batch.stopped[row] or not self._mask_truncated]
            rewards = scored.rewards[rows].tolist()
            if len(rows) < 2 or max(rewards) == min(rewards):
                num_ties += len(rows) > 1
                continue
            signs[rows[rewards.index(max(rewards))]] = 1.0
            signs[rows[rewards.index(min(rewards))]] = -1.0
        mask = batch.completion_mask & (signs != 0)[:, None]
        return Estimates(
            mask=mask,
            advantages=signs[:, None] * mask,
            old_logprobs=scored.old_logprobs,
            ref_logprobs=batch.ref_logprobs,
            group_ids=batch.group_ids,
            metrics={
                "pairs": float((signs > 0).sum()),
                "ties": float(num_ties),
                "untrained_fraction": float((signs == 0).float().mean()),
            },
        )

    def loss(
        self, micro: MicroBatch, forward: Forward, estimates: Estimates, size: BatchSize
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the sum of the pairs' losses over the pairs of the whole optimizer step."""
        mask = micro.take(estimates.mask)
        chosen, rejected = _pairs(micro, estimates)
        logps = sequence_logprobs(forward.logprobs, mask)
        ref_logps = sequence_logprobs(micro.take(estimates.ref_logprobs), mask)
        lengths = mask.sum(-1)
        result = self._pair_loss(
            logps[chosen],
            logps[rejected],
            ref_logps[chosen],
            ref_logps[rejected],
            chosen_lengths=lengths[chosen],
            rejected_lengths=lengths[rejected],
        )
        margins = result.chosen_rewards - result.rejected_rewards
        loss = result.losses.sum() / (size.num_sequences // 2)
        return loss, {
            "policy_loss": loss.detach(),
            "approx_kl": approx_kl(micro.take(estimates.old_logprobs), forward.logprobs, mask),
            "chosen_rewards": result.chosen_rewards.sum(),
            "rejected_rewards": result.rejected_rewards.sum(),
            "correct": (margins > 0).sum(),
            "chosen_logps": logps[chosen].detach().sum(),
            "rejected_logps": logps[rejected].detach().sum(),
        }

    def describe(self, totals: Totals) -> dict[str, float]:
        """Returns the implicit rewards of the pairs and what became of them."""
        # Two completions make a pair, so the mean over pairs is twice the mean over completions.
        chosen, rejected = (2 * totals.per_sequence(f"{side}_rewards") for side in ("chosen", "rejected"))
        return {
            "chosen_reward_mean": chosen,
            "rejected_reward_mean": rejected,
            "reward_margin": chosen - rejected,
            "reward_accuracy": 2 * totals.per_sequence("correct"),
            "chosen_logprob_mean": 2 * totals.per_sequence("chosen_logps"),
            "rejected_logprob_mean": 2 * totals.per_sequence("rejected_logps"),
        }


def _pairs(micro: MicroBatch, estimates: Estimates) -> tuple[Tensor, Tensor]:
    """Returns the places in the micro-batch of the chosen and of the rejected completions, [p] each, pair by pair."""
    signs = estimates.advantages[micro.rows, 0]
    groups = estimates.group_ids[micro.rows]
    by_group = [rows[groups[rows].argsort()] for rows in ((signs > 0).nonzero()[:, 0], (signs < 0).nonzero()[:, 0])]
    return by_group[0], by_group[1]
