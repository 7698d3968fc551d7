"""Sections of configuration that the online algorithms share. Formulas and sources: docs/online.md."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from rlhf.config import Section
from services.trainer.config.sections import OptimizerConfig


class ModelsConfig(Section):
    """The policy that is trained."""

    policy_path: Path
    """Hugging Face checkpoint of the initial policy."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Element type of the forward and backward pass, and of the pushed weights: what the policy service serves. With
    bfloat16 the optimizers keep float32 master weights."""
    device: str = Field(default="auto", min_length=1)
    """A torch device; "auto" takes CUDA where there is one, else the CPU."""


class OnlineTrainingConfig(Section):
    """How much is sampled and trained on, and how it is cut."""

    steps: int = Field(default=100, ge=1)
    """Steps of the run: each samples, scores, updates and pushes once."""
    prompts_per_step: int = Field(default=64, ge=1)
    """Prompts of one step."""
    group_size: int = Field(default=1, ge=1, le=256)
    """Completions of each prompt."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the rollouts of a step."""
    minibatches: int = Field(default=1, ge=1)
    """Optimizer steps of each pass."""
    max_policy_lag: int = Field(default=0, ge=0, le=16)
    """By how many versions the policy that sampled a token may be behind the one in training. 0: sample, then train, in
    turn. k: while a step trains, up to k later ones are sampled; rollouts in flight go on over a push."""
    max_dropped_fraction: float = Field(default=0.1, ge=0, lt=1)
    """The run ends with an error when more than this share of a step's rollouts got no score or no finite numbers."""
    micro_batch_tokens: int = Field(default=2048, ge=1)
    """Most tokens of one forward and backward pass. Changes memory and speed, never the result."""
    single_pass_tokens: int = Field(default=4096, ge=0)
    """Where a step is one epoch of one minibatch with at most this many tokens, the activations of its forward passes
    are kept until the advantages are known, so that none is run twice. Costs memory: about 2 MB a token for two models
    of 135M parameters. One rank alone can do it."""
    activation_checkpointing: bool = False
    """Compute activations again on the way back instead of keeping them: less memory, about a third more time."""
    seed: int = Field(default=0, ge=0)
    """Decides the order of prompts, the seeds of completions and the split into minibatches."""

    @property
    def rollouts_per_step(self) -> int:
        """Completions sampled in one step."""
        return self.prompts_per_step * self.group_size

    @property
    def optimizer_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.steps * self.epochs * self.minibatches


class GroupTrainingConfig(OnlineTrainingConfig):
    """How much is sampled and trained on, and how it is cut."""

    prompts_per_step: int = Field(default=16, ge=1)
    """Prompts of one step."""
    group_size: int = Field(default=8, ge=1, le=256)
    """Completions of each prompt, which are compared with one another."""


class PairTrainingConfig(OnlineTrainingConfig):
    """How much is sampled and trained on, and how it is cut."""

    group_size: int = Field(default=2, ge=1, le=256)
    """Completions of each prompt; the best and the worst of them make its pair."""


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


class LossKlConfig(KlConfig):
    """What keeps the policy near the reference."""

    place: Literal["reward", "loss"] = "loss"
    """In the reward of each token (as k1, without gradient), or as a term of the loss."""
    coef: float = Field(default=0.04, ge=0)
    """Reward lost, or loss, per nat of KL; where target is set, only the start value."""


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


class CriticOptimizerConfig(OptimizerConfig):
    """AdamW for a separate critic, which may move faster than the policy."""

    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate."""


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


class GroupsConfig(Section):
    """Which groups are worth training on."""

    drop_uniform: bool = False
    """Leave out groups whose rewards are all equal, and sample other prompts in their place."""
    max_rounds: int = Field(default=3, ge=1)
    """Times that a step samples, at most; it then goes on with the groups it has."""


class GrpoConfig(Section):
    """Group-relative advantages."""

    normalize_std: bool = True
    """Divide by the standard deviation of the group's rewards. Dr. GRPO does not, and has loss.aggregation
    "token-sum-over-constant"."""


class ReinforceConfig(Section):
    """REINFORCE++: whitened returns of tokens."""

    baseline: Literal["none", "group"] = "none"
    """"group" takes off the mean reward of the prompt's other completions' group first."""
    gamma: float = Field(default=1.0, ge=0, le=1)
    """Discount per token."""


class OnlineDpoConfig(Section):
    """The loss on a prompt's best and worst completion."""

    beta: float = Field(default=0.1, gt=0)
    """Temperature of the implicit reward; with "ipo", of length-averaged log-probabilities."""
    variant: Literal["sigmoid", "ipo", "hinge", "robust"] = "sigmoid"
    """Form of the loss (docs/online.md)."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Probability that the reward service prefers the wrong one; "sigmoid" and "robust" use it."""
    max_approx_kl: float | None = Field(default=None, gt=0)
    """A step's remaining minibatches are left out once the policy has moved this far, in nats per token; absent: never.
    """
