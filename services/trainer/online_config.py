"""Configuration of a PPO run: `rlhf train ppo --config FILE.toml`, or `rlhf-trainer` with the same file."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from rlhf_services.common.config import Section
from rlhf_services.trainer.config import (
    CheckpointConfig,
    OptimizerConfig,
    PromptsConfig,
    SamplingConfig,
    ServicesConfig,
    TrainerServerConfig,
)


class ModelsConfig(Section):
    """The models that are trained."""

    policy_path: Path
    """Hugging Face checkpoint of the initial policy."""
    critic_path: Path
    """Reward-model checkpoint that the critic starts as."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Element type of the forward and backward pass, and of the pushed weights: what the policy service serves. With
    bfloat16 the optimizers keep float32 master weights."""
    device: str = Field(default="auto", min_length=1)
    """A torch device; "auto" takes CUDA where there is one, else the CPU."""


class CriticOptimizerConfig(OptimizerConfig):
    """AdamW for the critic, which may move faster than the policy."""

    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate."""


class PpoConfig(Section):
    """The algorithm. Formulas and sources: docs/architecture.md, and the functions of services/algorithms."""

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
    clip_eps: float = Field(default=0.2, gt=0, lt=1)
    """Half-width of the interval around 1 in which the probability ratio earns."""
    value_clip_eps: float = Field(default=0.2, gt=0)
    """How far a value may move from the old one before its loss is clipped, in units of reward."""
    gamma: float = Field(default=1.0, ge=0, le=1)
    """Discount per token."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """Weight of longer returns in the advantage."""
    whiten_advantages: bool = True
    """Shift and scale the advantages of a step to mean 0 and variance 1."""
    kl_coef: float = Field(default=0.05, ge=0)
    """Reward lost per nat of KL to the reference; where kl_target is set, only the start value."""
    kl_target: float | None = Field(default=None, gt=0)
    """KL to the reference, in nats per completion, that kl_coef is adapted to hold; absent keeps kl_coef fixed."""
    kl_horizon: int = Field(default=10_000, ge=1)
    """Completions over which an adaptive kl_coef reacts; larger is slower."""
    max_dropped_fraction: float = Field(default=0.1, ge=0, lt=1)
    """The run ends with an error when more than this share of a step's rollouts got no score or no finite numbers."""
    micro_batch_tokens: int = Field(default=2048, ge=1)
    """Most padded tokens of one forward and backward pass. Changes memory and speed, never the result."""
    single_pass_tokens: int = Field(default=4096, ge=0)
    """Where a step is one epoch of one minibatch with at most this many padded tokens, the activations of its forward
    passes are kept until the advantages are known, so that none is run twice. Costs memory: about 2 MB a token for two
    models of 135M parameters."""
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

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        rollouts = self.rollouts_per_step
        if self.minibatches > rollouts:
            raise ValueError(
                f"ppo.minibatches is {self.minibatches}, but a step has only {rollouts} rollouts "
                "(ppo.prompts_per_step * ppo.group_size); lower the former or raise one of the latter"
            )
        if self.kl_target is not None and self.kl_coef == 0:
            raise ValueError("ppo.kl_coef is 0, which no kl_target can adapt; give a start value above 0")
        if self.kl_target is not None and self.kl_horizon * 5 <= rollouts:
            raise ValueError(
                f"ppo.kl_horizon is {self.kl_horizon}, too short for {rollouts} rollouts a step; raise it above "
                f"{rollouts // 5}"
            )
        return self


class PpoRunConfig(Section):
    """A PPO run."""

    run_dir: Path
    """Directory of the run: metrics.jsonl, checkpoints/, and at the end final/ (the policy, in Hugging Face form)."""
    models: ModelsConfig
    prompts: PromptsConfig
    services: ServicesConfig = ServicesConfig()
    sampling: SamplingConfig = SamplingConfig()
    ppo: PpoConfig = PpoConfig()
    policy_optimizer: OptimizerConfig = OptimizerConfig()
    critic_optimizer: CriticOptimizerConfig = CriticOptimizerConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    server: TrainerServerConfig = TrainerServerConfig()
