"""PPO (Schulman et al. 2017, arXiv:1707.06347): a critic, token rewards, GAE, and two clipped losses."""

from torch import Tensor

from rlhf.algorithms.advantages import gae, whiten
from rlhf.algorithms.losses import aggregate, clipped_value_loss
from rlhf.learning.algorithm import Estimates, Forward, Scored
from rlhf.learning.batch import Batch, MicroBatch
from rlhf.learning.config import CriticConfig, PolicyGradientOptions
from rlhf.learning.policy_gradient import PolicyGradient
from rlhf.learning.steps import BatchSize, Totals
from rlhf.learning.trained_model import TrainedModel
from rlhf.models.scalar_model import ScalarModel, completion_values


class Ppo(PolicyGradient):
    """An advantage for each token, by what the critic expected."""

    def __init__(self, options: PolicyGradientOptions, *, critic: CriticConfig) -> None:
        super().__init__(options)
        self._critic = critic

    def advantages(self, batch: Batch, scored: Scored, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Returns GAE, whitened if the run whitens, and the returns that the critic is to predict."""
        if scored.old_values is None:
            raise RuntimeError("PPO without a critic's values; the updater must have scored the batch with one")
        rewards = self.token_rewards(batch, scored, scored.rewards)
        critic = self._critic
        advantages, returns = gae(rewards, scored.old_values, batch.completion_mask, critic.gamma, critic.gae_lambda)
        whitens = critic.whiten_advantages and bool(mask.any())
        return whiten(advantages, mask) if whitens else advantages, returns

    def loss(
        self, micro: MicroBatch, forward: Forward, estimates: Estimates, size: BatchSize
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the policy's loss, and the head's with it if the policy has one."""
        loss, sums = super().loss(micro, forward, estimates, size)
        if forward.values is None:
            return loss, sums
        value_loss, value_sums = self.value_loss(micro, forward.values, estimates, size)
        return loss + self._critic.head_coef * value_loss, {**sums, **value_sums}

    def value_loss(
        self, micro: MicroBatch, values: Tensor, estimates: Estimates, size: BatchSize
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns a micro-batch's share of the critic's loss, a mean over tokens, and sums for its metrics."""
        if estimates.old_values is None or estimates.returns is None:
            raise RuntimeError("a value loss without old values and returns; estimate() gives both")
        mask = micro.take(estimates.mask)
        result = clipped_value_loss(
            values,
            micro.take(estimates.old_values),
            micro.take(estimates.returns),
            mask,
            value_clip_eps=self._critic.value_clip_eps,
        )
        loss = aggregate(result.token_losses, mask, num_tokens_global=size.num_tokens)
        return loss, {"value_loss": loss.detach(), "value_clipped": result.clipped.sum()}

    def describe(self, totals: Totals) -> dict[str, float]:
        """Returns the share of clipped tokens; where the policy has a head, of the clipped values too."""
        metrics = super().describe(totals)
        return {**metrics, **describe_critic(totals)} if self._critic.kind == "head" else metrics


def describe_critic(totals: Totals) -> dict[str, float]:
    """Returns the critic's metrics of its optimizer steps."""
    return {
        "value_loss": totals.per_minibatch("value_loss"),
        "value_clip_fraction": totals.per_token("value_clipped"),
    }


class SeparateCritic:
    """A reward model that learns to predict returns."""

    def __init__(self, trained: TrainedModel, ppo: Ppo) -> None:
        """Args: trained: around a ScalarModel. Raises: TypeError if it is around something else."""
        if not isinstance(trained.module, ScalarModel):
            raise TypeError(f"a critic is a ScalarModel, not a {type(trained.module).__name__}")
        self.trained = trained
        self._module = trained.module
        self.ppo = ppo

    def values(self, micro: MicroBatch) -> Tensor:
        """Returns the value of the state before each completion token: [b, t]. Carries gradient where it is enabled."""
        return completion_values(self._module, micro.sequences)
