"""One update, whatever the algorithm: from a batch of scored rollouts to new weights.

first passes -> old_logprobs, entropies, old_values -> shaped rewards -> the algorithm's advantages
each epoch, each minibatch: micro-batches of losses (+ demonstrations) -> gradients in float32 -> one optimizer step

Every rank holds the whole batch and computes all that is normalised over it; passes run for its share of the
micro-batches. So neither the cut into micro-batches nor the number of ranks changes a loss or a gradient.
"""

import random
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.algorithms.kl import AdaptiveKlController, FixedKlController
from rlhf.learning.algorithm import Algorithm, Estimates, Forward
from rlhf.learning.batch import Batch, MicroBatch, micro_batches
from rlhf.learning.batch_scores import RewardShaper, describe_batch, gather_scored
from rlhf.learning.ppo import SeparateCritic, describe_critic
from rlhf.learning.ptx import Ptx
from rlhf.learning.ranks import ALONE, Ranks, Share
from rlhf.learning.steps import BatchSize, MicroLoss, Totals, optimizer_step
from rlhf.learning.trained_model import TrainedModel
from rlhf.models.policy_model import PolicyModel

KlController = FixedKlController | AdaptiveKlController
MicroShares = list[Share[MicroBatch]]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateOptions:
    """What an update depends on besides the algorithm."""

    seed: int
    """Decides the split into minibatches."""
    epochs: int = 1
    """Passes over the rollouts of a step."""
    minibatches: int = 1
    """Optimizer steps of each pass."""
    micro_batch_tokens: int = 2048
    """Most tokens of one forward and backward pass."""
    single_pass_tokens: int = 4096
    """Where a step is one epoch of one minibatch with at most this many tokens, activations of its first forward passes
    are kept, so that none is run twice."""
    temperature: float = 1.0
    """Divides the logits, as in sampling."""
    with_entropy: bool = False
    """Whether the loss needs entropies with gradient."""
    max_approx_kl: float | None = None
    """Nats per token past which the remaining minibatches are left out."""
    warmup_steps: int = 0
    """First steps of the run that train a separate critic alone."""


@dataclass(frozen=True, slots=True)
class Update:
    """What an update did."""

    metrics: dict[str, float]
    policy_changed: bool
    """False in the critic's warm-up, and where nothing was left to train on."""


class Updater:
    """Holds what learns. Runs no event loop and knows no service."""

    def __init__(
        self,
        algorithm: Algorithm,
        policy: TrainedModel,
        options: UpdateOptions,
        *,
        kl_controller: KlController,
        shaper: RewardShaper,
        critic: SeparateCritic | None = None,
        ptx: Ptx | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        """Args: policy: around a PolicyModel, with a value head if the algorithm wants values and has no critic."""
        if not isinstance(policy.module, PolicyModel):
            raise TypeError(f"the policy must be wrapped in a PolicyModel, not a {type(policy.module).__name__}")
        self.policy = policy
        self.critic = critic
        self.kl_controller = kl_controller
        self.shaper = shaper
        self._module = policy.module
        self._algorithm = algorithm
        self._options = options
        self._ptx = ptx
        self._ranks = ranks

    def update(self, batch: Batch, step: int) -> Update:
        """Trains on a batch and returns the step's training metrics (telemetry/step.py has their units).

        Args:
            batch: on the models' device; the same on every rank.
            step: the step's number, from 1; with the seed it decides minibatches and demonstrations.
        Raises: NonFiniteError, on all ranks, if a loss or gradient is; the optimizer step that it would have spoilt is
            not taken.
        """
        started = time.monotonic()
        trains_policy = step > self._options.warmup_steps
        rewards, shaping_metrics = self.shaper.shape(batch)
        shares = self._shares(batch, self._algorithm.units(batch))
        # A single optimizer step starts from the very weights that old_logprobs and old_values are defined by, so one
        # forward pass can serve both, if its activations can be kept until the advantages are known.
        keeps = self._keeps_activations(batch)
        with torch.set_grad_enabled(keeps and trains_policy):
            forwards = [self._forward(share.item, with_entropy=True) for share in shares]
        policy_scored = time.monotonic()
        with torch.set_grad_enabled(keeps):
            values = [self.critic.values(share.item) for share in shares] if self.critic is not None else []
        scored = gather_scored(
            batch, shares, forwards, values, self._ranks, rewards=rewards, kl_coef=self.kl_controller.coef
        )
        values_scored = time.monotonic()
        estimates = self._algorithm.estimate(batch, scored)
        policy, critic = Totals(), Totals()
        if keeps:
            self._single_step(estimates, shares, forwards if trains_policy else [], values, policy, critic, step)
        else:
            self._minibatch_steps(batch, estimates, policy, critic, step, trains_policy=trains_policy)
        metrics = {**describe_batch(batch, scored, estimates), **shaping_metrics, **(estimates.metrics or {})}
        if trains_policy:
            self.kl_controller.update(metrics["kl"], batch.size)
        metrics |= self._describe(policy, critic)
        return Update(
            {
                **metrics,
                "logprobs_seconds": policy_scored - started,
                "values_seconds": values_scored - policy_scored,
                "update_seconds": time.monotonic() - values_scored,
            },
            policy_changed=policy.num_steps > 0,
        )

    def _forward(self, micro: MicroBatch, *, with_entropy: bool) -> Forward:
        has_head = self._module.value_head is not None
        scores = self._module(
            micro.sequences, self._options.temperature, with_entropy=with_entropy, with_values=has_head
        )
        return Forward(*scores)

    def _keeps_activations(self, batch: Batch) -> bool:
        """Whether the first passes are the only ones. On many ranks each pass must be followed by its backward."""
        options = self._options
        one_step = options.epochs == 1 and options.minibatches == 1 and self._ranks.world_size == 1
        return one_step and sum(batch.lengths) <= options.single_pass_tokens

    def _shares(self, batch: Batch, units: Sequence[Sequence[int]]) -> MicroShares:
        """Returns this rank's micro-batches of the units, cut so that no rank need be idle."""
        num_tokens = sum(batch.lengths[row] for unit in units for row in unit)
        even = -(-num_tokens // self._ranks.world_size)
        return self._ranks.share(micro_batches(batch, units, min(self._options.micro_batch_tokens, even)))

    def _single_step(
        self,
        estimates: Estimates,
        shares: MicroShares,
        forwards: Sequence[Forward],
        values: Sequence[Tensor],
        policy: Totals,
        critic: Totals,
        step: int,
    ) -> None:
        """Takes the one optimizer step of each model, on the activations that were kept."""
        trained = estimates.trained_rows()
        rows = [row for row, is_trained in enumerate(trained) if is_trained]
        if not rows:
            return
        size = BatchSize.of(estimates.mask, rows)
        used = [index for index, share in enumerate(shares) if any(trained[row] for row in share.item.rows.tolist())]
        if forwards:
            passes = ((shares[index], forwards[index]) for index in used)
            self._policy_step(self._policy_losses(estimates, passes, size, f"{step} 0 0"), size, policy)
        if self.critic is not None:
            self._critic_step(self.critic, estimates, ((shares[i], values[i]) for i in used), size, critic)

    def _minibatch_steps(
        self, batch: Batch, estimates: Estimates, policy: Totals, critic: Totals, step: int, *, trains_policy: bool
    ) -> None:
        """Takes the optimizer steps of all epochs, unless the policy moves too far before."""
        trained = estimates.trained_rows()
        units = [[row for row in unit if trained[row]] for unit in self._algorithm.units(batch)]
        units = [unit for unit in units if unit]
        for epoch in range(self._options.epochs):
            for index, part in enumerate(self.split(units, step, epoch)):
                shares = self._shares(batch, part)
                size = BatchSize.of(estimates.mask, [row for unit in part for row in unit])
                if trains_policy:
                    with_entropy = self._options.with_entropy
                    passes = ((share, self._forward(share.item, with_entropy=with_entropy)) for share in shares)
                    losses = self._policy_losses(estimates, passes, size, f"{step} {epoch} {index}")
                    if not self._policy_step(losses, size, policy):
                        return
                if self.critic is not None:
                    model = self.critic
                    value_passes = ((share, model.values(share.item)) for share in shares)
                    self._critic_step(model, estimates, value_passes, size, critic)

    def split(self, units: Sequence[list[int]], step: int, epoch: int) -> list[list[list[int]]]:
        """Returns the units of each minibatch: a permutation that depends on seed, step and epoch alone."""
        shuffled = list(units)
        random.Random(f"minibatches {self._options.seed} {step} {epoch}").shuffle(shuffled)
        count = self._options.minibatches
        return [part for part in (shuffled[index::count] for index in range(count)) if part]

    def _policy_losses(
        self, estimates: Estimates, passes: Iterable[tuple[Share[MicroBatch], Forward]], size: BatchSize, key: str
    ) -> Iterator[MicroLoss]:
        """Yields the losses of one optimizer step: of the rollouts, then of the demonstrations.

        Args: passes: micro-batches with their forward passes. key: names the step within the run.
        """
        for share, forward in passes:
            yield MicroLoss(*self._algorithm.loss(share.item, forward, estimates, size), share.weight)
        if self._ptx is not None:
            yield from self._ptx.losses(self._module, key, estimates.mask.device)

    def _policy_step(self, losses: Iterator[MicroLoss], size: BatchSize, totals: Totals) -> bool:
        limit = self._options.max_approx_kl
        return optimizer_step(self.policy, losses, size, totals, self._ranks, max_approx_kl=limit)

    def _critic_step(
        self,
        critic: SeparateCritic,
        estimates: Estimates,
        passes: Iterable[tuple[Share[MicroBatch], Tensor]],
        size: BatchSize,
        totals: Totals,
    ) -> None:
        losses = (
            MicroLoss(*critic.ppo.value_loss(share.item, values, estimates, size), share.weight)
            for share, values in passes
        )
        optimizer_step(critic.trained, losses, size, totals, self._ranks)

    def _describe(self, policy: Totals, critic: Totals) -> dict[str, float]:
        """Returns the metrics of the optimizer steps."""
        metrics = {
            **self._algorithm.describe(policy),
            "policy_loss": policy.per_minibatch("policy_loss"),
            "approx_kl": policy.per_token("approx_kl"),
            "policy_grad_norm": policy.grad_norm,
            "policy_learning_rate": policy.learning_rate,
            "policy_steps": float(policy.num_steps),
        }
        if self._ptx is not None:
            metrics["ptx_loss"] = policy.per_minibatch("ptx_loss")
        if self.critic is not None:
            metrics |= {
                **describe_critic(critic),
                "critic_grad_norm": critic.grad_norm,
                "critic_learning_rate": critic.learning_rate,
            }
        return metrics
