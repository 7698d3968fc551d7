"""What all algorithms share that weigh log-probabilities with advantages: the clipped loss and where the KL goes."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from rlhf.algorithms.kl import kl_estimate, token_rewards
from rlhf.algorithms.losses import (
    aggregate,
    clipped_policy_loss,
    entropy_bonus,
    sequence_ratio_mask,
    truncated_importance_weights,
)
from rlhf.algorithms.masking import select
from rlhf.learning.algorithm import Estimates, Forward, Scored
from rlhf.learning.batch import Batch, MicroBatch
from rlhf.learning.config import PolicyGradientOptions
from rlhf.learning.steps import BatchSize, Totals


class PolicyGradient(ABC):
    """An algorithm whose own part is its advantages."""

    def __init__(self, options: PolicyGradientOptions) -> None:
        self._options = options
        self._loss = options.loss
        self._kl = options.kl

    @abstractmethod
    def advantages(self, batch: Batch, scored: Scored, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns (advantages, returns or None), [B, T] each; what they hold where mask is False is not read.

        Args:
            mask: [B, T] bool, the tokens that are trained on: every row of it is the completion mask's, or False.
        """

    def units(self, batch: Batch) -> list[list[int]]:
        """Returns every completion alone: their losses do not meet."""
        return [[row] for row in range(batch.size)]

    def estimate(self, batch: Batch, scored: Scored) -> Estimates:
        """Returns advantages and importance weights; completions are left out for the reasons that `reward` and `loss`
        of the configuration give, and where nothing is left of their group."""
        loss, mask = self._loss, batch.completion_mask
        rows = torch.ones_like(batch.stopped)
        if self._options.mask_truncated:
            rows &= batch.stopped
        rejected = torch.zeros_like(rows)
        if loss.sequence_ratio_bound is not None:
            rejected = ~sequence_ratio_mask(
                scored.old_logprobs, batch.sampler_logprobs, mask, loss.sequence_ratio_bound
            )
        rows &= ~rejected
        alone = in_groups_of_one(batch.group_ids) if self._options.needs_groups else torch.zeros_like(rows)
        rows &= ~alone
        weights = None
        clamped = torch.zeros_like(mask)
        if self._options.importance_cap is not None:
            # By the version that sampled each token: its log-probability came with the rollout.
            weights, clamped = truncated_importance_weights(
                scored.old_logprobs, batch.sampler_logprobs, mask, self._options.importance_cap
            )
        trained = mask & rows[:, None]
        advantages, returns = self.advantages(batch, scored, trained)
        return Estimates(
            mask=trained,
            advantages=select(advantages, trained),
            returns=None if returns is None else select(returns, trained),
            old_logprobs=scored.old_logprobs,
            ref_logprobs=batch.ref_logprobs,
            group_ids=batch.group_ids,
            kl_coef=scored.kl_coef if self._kl.place == "loss" else 0.0,
            weights=weights,
            old_values=scored.old_values,
            metrics={
                "untrained_fraction": 1.0 - float(rows.float().mean()),
                "ratio_rejected_fraction": float(rejected.float().mean()),
                "importance_clamped_fraction": float(clamped.sum() / mask.sum()),
            },
        )

    def loss(
        self, micro: MicroBatch, forward: Forward, estimates: Estimates, size: BatchSize
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the clipped loss, with KL and entropy where they belong to it."""
        config, mask = self._loss, micro.take(estimates.mask)
        logprobs, old_logprobs = forward.logprobs, micro.take(estimates.old_logprobs)
        result = clipped_policy_loss(
            logprobs,
            old_logprobs,
            micro.take(estimates.advantages),
            mask,
            clip_eps_low=config.clip_eps_low,
            clip_eps_high=config.clip_eps_high,
            dual_clip=config.dual_clip,
        )
        losses = result.token_losses
        if estimates.weights is not None:
            losses = losses * micro.take(estimates.weights)
        if estimates.kl_coef > 0:
            # Padding and left-out rows are replaced before the exponential, which could overflow there.
            differences = select(logprobs, mask), select(micro.take(estimates.ref_logprobs), mask)
            losses = losses + estimates.kl_coef * kl_estimate(*differences, self._kl.estimator)
        if config.entropy_coef > 0 and forward.entropies is not None:
            losses = losses + config.entropy_coef * entropy_bonus(forward.entropies, mask)
        loss = aggregate(
            losses,
            mask,
            config.aggregation,
            num_tokens_global=size.num_tokens,
            num_sequences_global=size.num_sequences,
            max_completion_tokens=self._options.max_completion_tokens,
        )
        return loss, {
            "policy_loss": loss.detach(),
            "clipped": result.clipped.sum(),
            "approx_kl": approx_kl(old_logprobs, logprobs, mask),
        }

    def describe(self, totals: Totals) -> dict[str, float]:
        """Returns the share of clipped tokens."""
        return {"clip_fraction": totals.per_token("clipped")}

    def token_rewards(self, batch: Batch, scored: Scored, rewards: Tensor) -> Tensor:
        """Returns rewards [B] at the last tokens, less the KL penalty at every token if it is in the reward: [B, T]."""
        coef = scored.kl_coef if self._kl.place == "reward" else 0.0
        return token_rewards(rewards, scored.old_logprobs, batch.ref_logprobs, batch.completion_mask, coef)

    def completion_rewards(self, batch: Batch, scored: Scored) -> Tensor:
        """Returns the rewards, less the KL penalty of the whole completion if it is in the reward: [B]."""
        return self.token_rewards(batch, scored, scored.rewards).sum(-1)


def compare_in_groups(
    compare: Callable[[Tensor, Tensor], Tensor], rewards: Tensor, group_ids: Tensor, mask: Tensor
) -> Tensor:
    """Returns compare(rewards, group_ids), [B], with 0 for completions that are alone in their group, spread: [B, T].

    Completions that are left out of the loss for another reason are compared with all the same.
    """
    advantages = torch.zeros_like(rewards)
    several = ~in_groups_of_one(group_ids)
    if several.any():
        advantages[several] = compare(rewards[several], group_ids[several])
    return advantages[:, None].expand(mask.shape)


def in_groups_of_one(group_ids: Tensor) -> Tensor:
    """Returns which completions have lost the others of their group (no score, no finite numbers): [B] bool."""
    inverse, counts = torch.unique(group_ids, return_inverse=True, return_counts=True)[1:]
    alone: Tensor = counts[inverse] == 1
    return alone


def approx_kl(old_logprobs: Tensor, logprobs: Tensor, mask: Tensor) -> Tensor:
    """Returns the sum over the masked tokens of k3 from the old policy to the one in training, without gradient."""
    return kl_estimate(select(old_logprobs, mask), select(logprobs.detach(), mask), "k3").sum()
