"""What one online algorithm has of its own; collecting, passes, minibatches and steps are shared (update.py)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from rlhf.learning.batch import Batch, MicroBatch
from rlhf.learning.steps import BatchSize, Totals


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """A batch under the weights before the update: [B, T] each, zeros at padding, no gradient."""

    rewards: Tensor
    """[B], after shaping."""
    old_logprobs: Tensor
    """Nats."""
    entropies: Tensor
    """Nats."""
    old_values: Tensor | None
    """None without a critic."""
    kl_coef: float
    """Weight of the KL to the reference in this step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimates:
    """What the losses of a step are made of. Tensors are [B, T], zeros at padding, no gradient, unless they say else.

    They are those of the whole batch on every rank: nothing in them depends on how the batch is cut.
    """

    mask: Tensor
    """Bool: the completion tokens that are trained on. Whole completions are left out, never parts of one."""
    advantages: Tensor
    old_logprobs: Tensor
    ref_logprobs: Tensor
    group_ids: Tensor
    """[B] int64."""
    kl_coef: float = 0.0
    """Weight of the KL to the reference in the loss; 0 where it is in the reward."""
    weights: Tensor | None = None
    """Truncated importance weights; None weighs all tokens alike."""
    old_values: Tensor | None = None
    returns: Tensor | None = None
    metrics: Mapping[str, float] | None = None
    """What the algorithm reports of the batch."""

    def trained_rows(self) -> list[bool]:
        """Returns for each completion whether it is trained on."""
        rows: list[bool] = self.mask.any(-1).tolist()
        return rows


@dataclass(frozen=True, slots=True)
class Forward:
    """One micro-batch under the weights in training: [b, t] each, with gradient."""

    logprobs: Tensor
    entropies: Tensor | None
    """None if they are not needed."""
    values: Tensor | None
    """None without a value head on the policy."""


class Algorithm(Protocol):
    """One online algorithm. The same object serves all steps of a run and keeps nothing between them."""

    def units(self, batch: Batch) -> list[list[int]]:
        """Returns the rows that a loss compares with one another and that no micro-batch may part."""

    def estimate(self, batch: Batch, scored: Scored) -> Estimates:
        """Returns advantages, and which completions are trained on."""

    def loss(
        self, micro: MicroBatch, forward: Forward, estimates: Estimates, size: BatchSize
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns a micro-batch's share of the loss (shares add up to the whole), and sums for its metrics.

        Among the sums are "policy_loss" and "approx_kl", the KL from the old policy to the one in training, by k3,
        summed over the tokens.
        """

    def describe(self, totals: Totals) -> dict[str, float]:
        """Returns the algorithm's own metrics of the policy's optimizer steps."""
