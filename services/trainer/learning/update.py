"""One PPO update: from a batch of scored rollouts to new weights of policy and critic.

forward passes -> old_logprobs, old_values -> token rewards (KL) -> advantages, returns (GAE, whitened over the batch)
each epoch, each minibatch: micro-batches of clipped losses -> gradients in float32 -> one step of each optimizer
"""

import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_services.algorithms.advantages import gae, whiten
from rlhf_services.algorithms.kl import AdaptiveKlController, FixedKlController, kl_estimate, token_rewards
from rlhf_services.algorithms.losses import aggregate, clipped_policy_loss, clipped_value_loss
from rlhf_services.algorithms.masking import masked_mean
from rlhf_services.models.scalar_model import ScalarModel
from rlhf_services.models.token_scores import completion_logprobs, completion_values
from rlhf_services.trainer.learning.optimizer import MasterOptimizer, OptimizerStep, require_finite
from rlhf_services.trainer.online_config import PpoRunConfig
from rlhf_services.trainer.rollouts.batch import Batch, MicroBatch, micro_batches

KlController = FixedKlController | AdaptiveKlController


def make_kl_controller(config: PpoRunConfig) -> KlController:
    """Returns the controller of the KL penalty's weight: adaptive if a target is set."""
    if config.kl.target is None:
        return FixedKlController(config.kl.coef)
    return AdaptiveKlController(config.kl.coef, target=config.kl.target, horizon=config.kl.horizon)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimates:
    """What is known of a batch before the update; all [B, T], zeros at padding, without gradient."""

    old_logprobs: Tensor
    entropies: Tensor
    old_values: Tensor
    advantages: Tensor
    """Whitened, if the run whitens."""
    returns: Tensor


@dataclass(slots=True)
class _Totals:
    """Sums over the micro-batches and optimizer steps of one model's part of the update."""

    loss: float = 0.0
    clipped: float = 0.0
    approx_kl: float = 0.0
    num_tokens: int = 0
    grad_norm: float = 0.0
    num_steps: int = 0
    learning_rate: float = 0.0

    def add_step(self, step: OptimizerStep) -> None:
        self.grad_norm += step.grad_norm
        self.learning_rate = step.learning_rate
        self.num_steps += 1


class PpoUpdater:
    """Holds the two models and their optimizers. Runs no event loop and knows no service."""

    def __init__(
        self,
        policy: PreTrainedModel,
        critic: ScalarModel,
        config: PpoRunConfig,
        *,
        temperature: float,
        policy_optimizer: MasterOptimizer,
        critic_optimizer: MasterOptimizer,
        kl_controller: KlController,
    ) -> None:
        self.policy = policy
        self.critic = critic
        self.policy_optimizer = policy_optimizer
        self.critic_optimizer = critic_optimizer
        self.kl_controller = kl_controller
        self._config = config
        self._temperature = temperature

    def update(self, batch: Batch, step: int) -> dict[str, float]:
        """Trains both models on a batch and returns the step's training metrics (metrics.py has their units).

        Args:
            batch: on the models' device.
            step: the step's number; with the seed it decides the split into minibatches.
        Raises: NonFiniteError if a loss or gradient is; the optimizer step that it would have spoilt is not taken.
        """
        return self._update(batch, step)

    def _update(self, batch: Batch, step: int) -> dict[str, float]:
        started = time.monotonic()
        micros = micro_batches(batch, range(batch.size), self._config.training.micro_batch_tokens)
        # A single optimizer step starts from the very weights that old_logprobs and old_values are defined by, so one
        # forward pass can serve both, if its activations can be kept until the advantages are known.
        single_pass = self._is_single_pass(micros)
        with torch.set_grad_enabled(single_pass):
            scored = [
                completion_logprobs(self.policy, micro.sequences, self._temperature, with_entropy=True)
                for micro in micros
            ]
            policy_scored = time.monotonic()
            values = [completion_values(self.critic, micro.sequences) for micro in micros]
        estimates = self._estimate(batch, micros, scored, values)
        estimated = time.monotonic()
        metrics = self._describe(batch, estimates)
        if single_pass:
            policy_totals, critic_totals = _Totals(), _Totals()
            logprobs = [kept for kept, _ in scored]
            self._policy_step(estimates, zip(micros, logprobs, strict=True), policy_totals, batch.num_completion_tokens)
            self._critic_step(estimates, zip(micros, values, strict=True), critic_totals, batch.num_completion_tokens)
        else:
            policy_totals, critic_totals = self._minibatch_steps(batch, estimates, step)
        self.kl_controller.update(metrics["kl"], batch.size)
        return {
            **metrics,
            **_summarise(policy_totals, critic_totals),
            "logprobs_seconds": policy_scored - started,
            "values_seconds": estimated - policy_scored,
            "update_seconds": time.monotonic() - estimated,
        }

    def _is_single_pass(self, micros: Sequence[MicroBatch]) -> bool:
        padded_tokens = sum(micro.sequences.input_ids.numel() for micro in micros)
        config = self._config
        return config.training.epochs == 1 and config.training.minibatches == 1 and padded_tokens <= config.training.single_pass_tokens

    def _estimate(
        self,
        batch: Batch,
        micros: Sequence[MicroBatch],
        scored: Sequence[tuple[Tensor, Tensor]],
        values: Sequence[Tensor],
    ) -> Estimates:
        """Returns advantages and all that they are made of, from the forward passes of the micro-batches."""
        config, mask = self._config, batch.completion_mask
        old_logprobs, entropies, old_values = (torch.zeros_like(batch.sampler_logprobs) for _ in range(3))
        for micro, (logprobs, entropy), value in zip(micros, scored, values, strict=True):
            micro.put(logprobs.detach(), old_logprobs)
            micro.put(entropy.detach(), entropies)
            micro.put(value.detach(), old_values)
        require_finite("the sum of the policy's log-probabilities", old_logprobs.sum())
        require_finite("the sum of the critic's values", old_values.sum())
        rewards = token_rewards(batch.rewards, old_logprobs, batch.ref_logprobs, mask, self.kl_controller.coef)
        advantages, returns = gae(rewards, old_values, mask, config.critic.gamma, config.critic.gae_lambda)
        return Estimates(
            old_logprobs=old_logprobs,
            entropies=entropies,
            old_values=old_values,
            advantages=whiten(advantages, mask) if config.critic.whiten_advantages else advantages,
            returns=returns,
        )

    def _minibatch_steps(self, batch: Batch, estimates: Estimates, step: int) -> tuple[_Totals, _Totals]:
        policy_totals, critic_totals = _Totals(), _Totals()
        for epoch in range(self._config.training.epochs):
            for rows in self._split_rows(batch.size, step, epoch):
                micros = micro_batches(batch, rows, self._config.training.micro_batch_tokens)
                num_tokens = sum(int(micro.completion_mask.sum()) for micro in micros)
                policy_passes = (
                    (micro, completion_logprobs(self.policy, micro.sequences, self._temperature)) for micro in micros
                )
                self._policy_step(estimates, policy_passes, policy_totals, num_tokens)
                critic_passes = ((micro, completion_values(self.critic, micro.sequences)) for micro in micros)
                self._critic_step(estimates, critic_passes, critic_totals, num_tokens)
        return policy_totals, critic_totals

    def _split_rows(self, num_rows: int, step: int, epoch: int) -> list[list[int]]:
        """Returns the rows of each minibatch: a permutation that depends on seed, step and epoch alone."""
        rows = list(range(num_rows))
        random.Random(f"minibatches {self._config.training.seed} {step} {epoch}").shuffle(rows)
        parts = [rows[index :: self._config.training.minibatches] for index in range(self._config.training.minibatches)]
        return [part for part in parts if part]

    def _policy_step(
        self, estimates: Estimates, passes: Iterable[tuple[MicroBatch, Tensor]], totals: _Totals, num_tokens: int
    ) -> None:
        """Takes one optimizer step of the policy; `passes` yields micro-batches and their logprobs with grad."""
        for micro, logprobs in passes:
            mask, old_logprobs = micro.completion_mask, micro.take(estimates.old_logprobs)
            advantages = micro.take(estimates.advantages)
            result = clipped_policy_loss(logprobs, old_logprobs, advantages, mask, clip_eps_low=self._config.loss.clip_eps_low)
            loss = aggregate(result.token_losses, mask, num_tokens_global=num_tokens)
            require_finite("the policy loss", loss.detach())
            loss.backward()  # type: ignore[no-untyped-call]
            totals.loss += float(loss.detach())
            totals.clipped += int(result.clipped.sum())
            totals.approx_kl += float(kl_estimate(old_logprobs, logprobs.detach(), "k3")[mask].sum())
        totals.num_tokens += num_tokens
        totals.add_step(self.policy_optimizer.step())

    def _critic_step(
        self, estimates: Estimates, passes: Iterable[tuple[MicroBatch, Tensor]], totals: _Totals, num_tokens: int
    ) -> None:
        """Takes one optimizer step of the critic; `passes` yields micro-batches and their values with grad."""
        for micro, values in passes:
            mask = micro.completion_mask
            result = clipped_value_loss(
                values,
                micro.take(estimates.old_values),
                micro.take(estimates.returns),
                mask,
                value_clip_eps=self._config.critic.value_clip_eps,
            )
            loss = aggregate(result.token_losses, mask, num_tokens_global=num_tokens)
            require_finite("the value loss", loss.detach())
            loss.backward()  # type: ignore[no-untyped-call]
            totals.loss += float(loss.detach())
            totals.clipped += int(result.clipped.sum())
        totals.num_tokens += num_tokens
        totals.add_step(self.critic_optimizer.step())

    def _describe(self, batch: Batch, estimates: Estimates) -> dict[str, float]:
        """Returns the metrics that do not depend on the update."""
        mask = batch.completion_mask
        kl = kl_estimate(estimates.old_logprobs, batch.ref_logprobs, "k1").masked_fill(~mask, 0.0)
        returns, errors = estimates.returns[mask], (estimates.returns - estimates.old_values)[mask]
        variance = float(returns.var(correction=0))
        mismatch = (estimates.old_logprobs - batch.sampler_logprobs).abs()
        return {
            "reward_mean": float(batch.rewards.mean()),
            "reward_std": float(batch.rewards.std(correction=0)),
            "kl": float(kl.sum(-1).mean()),
            "kl_per_token": float(kl.sum() / mask.sum()),
            "kl_coef": self.kl_controller.coef,
            "entropy": float(masked_mean(estimates.entropies, mask)),
            "value_mean": float(masked_mean(estimates.old_values, mask)),
            "value_explained_variance": 1.0 - float(errors.var(correction=0)) / variance if variance > 0 else 0.0,
            "sampler_mismatch": float(masked_mean(mismatch, mask)),
            "sampler_mismatch_k3": float(
                masked_mean(kl_estimate(batch.sampler_logprobs, estimates.old_logprobs, "k3"), mask)
            ),
        }


def _summarise(policy: _Totals, critic: _Totals) -> dict[str, float]:
    """Returns the metrics of the optimizer steps, averaged over them."""
    return {
        "policy_loss": policy.loss / policy.num_steps,
        "value_loss": critic.loss / critic.num_steps,
        "clip_fraction": policy.clipped / policy.num_tokens,
        "value_clip_fraction": critic.clipped / critic.num_tokens,
        "approx_kl": policy.approx_kl / policy.num_tokens,
        "policy_grad_norm": policy.grad_norm / policy.num_steps,
        "critic_grad_norm": critic.grad_norm / critic.num_steps,
        "policy_learning_rate": policy.learning_rate,
        "critic_learning_rate": critic.learning_rate,
    }
