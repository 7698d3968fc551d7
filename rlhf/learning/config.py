"""Sections of configuration that learning reads. Formulas and sources: docs/online.md. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from rlhf.config import Section


class OptimizerConfig(Section):
    """AdamW with linear warm-up and linear decay."""

    learning_rate: float = Field(default=2e-6, gt=0)
    """Peak learning rate."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimizer steps over which the learning rate rises linearly to its peak."""
    final_learning_rate_fraction: float = Field(default=1.0, ge=0, le=1)
    """The learning rate falls linearly from its peak to this fraction of it at the last step; 1 keeps it constant."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = Field(default=0.95, ge=0, lt=1)
    """Decay of the second moment."""
    eps: float = Field(default=1e-5, gt=0)
    """Added to the root of the second moment; 1e-5 as in arXiv:2403.17031."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay of matrices; vectors (norms, biases) have none."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients whose global norm is larger are scaled down to it."""


class LoraConfig(Section):
    """Low-rank adapters instead of all weights (arXiv:2106.09685): W + alpha / rank * B A, with W frozen."""

    rank: int = Field(default=16, ge=1)
    """Columns of B and rows of A."""
    alpha: float = Field(default=32.0, gt=0)
    """Scale of the adapters, before it is divided by rank."""
    dropout: float = Field(default=0.0, ge=0, le=0)
    """Must be 0: what is trained must be what is pushed and scored."""
    target_modules: tuple[str, ...] = ()
    """Names of the linear layers that get adapters, such as "q_proj"; empty takes all but the output projection."""


class LossConfig(Section):
    """The loss of the policy."""

    clip_eps_low: float = Field(default=0.2, gt=0, lt=1)
    """How far below 1 the probability ratio may fall and still earn."""
    clip_eps_high: float = Field(default=0.2, gt=0)
    """How far above 1 it may rise and still earn."""
    dual_clip: float | None = Field(default=None, gt=1)
    """A token with a negative advantage loses at most this many times its advantage (3 is usual); absent: no bound."""
    aggregation: Literal[
        "token-mean", "sequence-mean-token-sum", "sequence-mean-token-mean", "token-sum-over-constant"
    ] = "token-mean"
    """How the losses of tokens become one number. The constant is completions times sampling.max_new_tokens."""
    entropy_coef: float = Field(default=0.0, ge=0)
    """Reward for each nat of entropy of a token's distribution."""
    importance_cap: float | None = Field(default=None, gt=0)
    """Weigh each token with the ratio of the trainer's to the policy service's probability of it, at most this (2 is
    usual); absent: 2 where training.max_policy_lag is above 0, else do not. Wanted where sampler_mismatch_k3 is not
    small."""
    sequence_ratio_bound: float | None = Field(default=None, gt=1)
    """Leave out completions whose mean such ratio (geometric) is above this or below its inverse; absent: none."""
    max_approx_kl: float | None = Field(default=None, gt=0)
    """A step's remaining minibatches are left out once the policy has moved this far, in nats per token; absent: never.
    """


class KlConfig(Section):
    """What keeps the policy near the reference."""

    place: Literal["reward", "loss"] = "reward"
    """In the reward of each token (as k1, without gradient), or as a term of the loss."""
    estimator: Literal["k2", "k3"] = "k3"
    """Of the term in the loss."""
    coef: float = Field(default=0.05, ge=0)
    """Reward lost, or loss, per nat of KL; where target is set, only the start value."""
    target: float | None = Field(default=None, gt=0)
    """KL to the reference, in nats per completion, that coef is adapted to hold; absent keeps it fixed."""
    horizon: int = Field(default=10_000, ge=1)
    """Completions over which an adaptive coef reacts; larger is slower."""


class CriticConfig(Section):
    """Values, and the advantages that are made of them."""

    kind: Literal["separate", "head"] = "separate"
    """A model of its own, or a linear head on the policy's last hidden states."""
    path: Path | None = None
    """Reward-model checkpoint that a separate critic starts as."""
    warmup_steps: int = Field(default=0, ge=0)
    """First steps of the run in which a separate critic is trained alone and the policy stays as it is."""
    value_clip_eps: float = Field(default=0.2, gt=0)
    """How far a value may move from the old one before its loss is clipped, in units of reward."""
    head_coef: float = Field(default=0.1, gt=0)
    """Weight of a head's value loss beside the policy loss; the two share their gradient's norm."""
    gamma: float = Field(default=1.0, ge=0, le=1)
    """Discount per token."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """Weight of longer returns in the advantage."""
    whiten_advantages: bool = True
    """Shift and scale the advantages of a step to mean 0 and variance 1."""


class RewardShapingConfig(Section):
    """What becomes of a reward before it is trained on, in this order. Metrics show it as it was."""

    normalize: Literal["none", "running"] = "none"
    """"running" takes off the mean of all rewards of the run so far and divides by their standard deviation."""
    clip: float | None = Field(default=None, gt=0)
    """Rewards are cut to [-clip, clip]; absent: not."""
    missing_stop_penalty: float = Field(default=0.0, ge=0)
    """Taken off the reward of a completion that ended by its length."""
    overlong_buffer_tokens: int = Field(default=0, ge=0)
    """The last so many tokens before sampling.max_new_tokens are taxed, linearly up to overlong_penalty; 0: none."""
    overlong_penalty: float = Field(default=1.0, gt=0)
    """Taken off the reward of a completion of full length, where there is such a buffer."""
    mask_truncated: bool = False
    """Give completions that ended by their length no part in the loss."""


class PtxConfig(Section):
    """Demonstrations whose likelihood is raised along with the reward."""

    path: Path | None = None
    """JSONL, each line a prompt (or messages) and a completion; absent: none."""
    coef: float = Field(default=0.0, ge=0)
    """Weight of their mean loss per token beside the policy loss."""
    examples_per_minibatch: int = Field(default=8, ge=1)
    """Demonstrations of each optimizer step."""
    max_tokens: int = Field(default=1024, ge=1)
    """Longer demonstrations are dropped and counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyGradientOptions:
    """What all algorithms depend on that weigh log-probabilities with advantages."""

    loss: LossConfig
    kl: KlConfig
    importance_cap: float | None = None
    """Most that a token's loss is weighed with for its sampler's sake; None: it is not weighed."""
    mask_truncated: bool = False
    """Whether completions that ended by their length have no part in the loss."""
    needs_groups: bool = False
    """Whether the completions of one prompt are compared, so that one alone cannot be trained on."""
    max_completion_tokens: int = 128
    """Most tokens of a completion, the constant of loss.aggregation "token-sum-over-constant"."""
