"""Configuration of online runs, a class for each algorithm: `rlhf train ppo --config FILE.toml`, and its relatives."""

from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from rlhf.algorithms.variants import PAIR_VARIANTS, help_of
from rlhf.config import Section
from rlhf.learning.config import (
    CriticConfig,
    KlConfig,
    LoraConfig,
    LossConfig,
    OptimizerConfig,
    PolicyGradientOptions,
    PtxConfig,
    RewardShapingConfig,
)
from services.trainer.config.sections import (
    CheckpointConfig,
    CriticOptimizerConfig,
    EvaluationConfig,
    GroupsConfig,
    GroupTrainingConfig,
    LossKlConfig,
    ModelConfig,
    OnlineTrainingConfig,
    PairTrainingConfig,
    PairVariant,
    PromptsConfig,
    SamplingConfig,
    ServicesConfig,
    TrainerServerConfig,
    WatchConfig,
    require_smoothing,
)

LAG_IMPORTANCE_CAP = 2.0
"""loss.importance_cap where older versions of the policy may have sampled, unless the configuration says another."""


class OnlineRunConfig(Section):
    """A run that samples from the policy it trains."""

    algorithm: ClassVar[str]
    """Its name on the command line."""

    run_dir: Path
    """Directory of the run: metrics.jsonl, checkpoints/, and at the end final/ (the policy, in Hugging Face form)."""
    model: ModelConfig
    prompts: PromptsConfig
    services: ServicesConfig = ServicesConfig()
    sampling: SamplingConfig = SamplingConfig()
    training: OnlineTrainingConfig = OnlineTrainingConfig()
    reward: RewardShapingConfig = RewardShapingConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    ptx: PtxConfig = PtxConfig()
    groups: GroupsConfig = GroupsConfig()
    lora: LoraConfig | None = None
    """Adapters of the policy that are trained instead of its weights; absent: train all weights."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    watch: WatchConfig = WatchConfig()
    server: TrainerServerConfig = TrainerServerConfig()

    @property
    def needs_groups(self) -> bool:
        """Whether the algorithm compares completions of one prompt."""
        return False

    def algorithm_options(self) -> dict[str, Any]:
        """Returns the arguments that the algorithm's class is made with."""
        return {}

    @model_validator(mode="after")
    def _minibatches_can_be_filled(self) -> Self:
        training = self.training
        units = training.prompts_per_step if self.algorithm == "online-dpo" else training.rollouts_per_step
        if training.minibatches > units:
            raise ValueError(
                f"training.minibatches is {training.minibatches}, but a step has only {units} rollouts or pairs "
                f"(training.prompts_per_step {training.prompts_per_step}, training.group_size {training.group_size}); "
                "lower the former or raise one of the latter"
            )
        return self

    @model_validator(mode="after")
    def _groups_have_several(self) -> Self:
        if self.training.group_size == 1 and (self.needs_groups or self.groups.drop_uniform):
            why = f"{self.algorithm} compares" if self.needs_groups else "groups.drop_uniform is true, and compares"
            raise ValueError(
                f"training.group_size is 1, but {why} the completions of a prompt with one another; make it at least 2"
            )
        return self

    @model_validator(mode="after")
    def _groups_are_known_before_training(self) -> Self:
        lag = self.training.max_policy_lag
        if lag > 0 and self.groups.drop_uniform:
            raise ValueError(
                f"training.max_policy_lag is {lag}, but groups.drop_uniform is true, which draws prompts by the "
                "rewards of others and so cannot run ahead; set the former to 0, or the latter to false"
            )
        return self

    @model_validator(mode="after")
    def _reward_fits(self) -> Self:
        buffer, longest = self.reward.overlong_buffer_tokens, self.sampling.max_new_tokens
        if buffer > longest:
            raise ValueError(
                f"reward.overlong_buffer_tokens is {buffer}, more than sampling.max_new_tokens ({longest}); lower the "
                "former or raise the latter"
            )
        return self

    @model_validator(mode="after")
    def _demonstrations_are_there(self) -> Self:
        path, coef = self.ptx.path, self.ptx.coef
        if (path is None) != (coef == 0):
            missing = "ptx.path is absent: name a JSONL file" if path is None else "ptx.coef is 0: give it a weight"
            given = f"ptx.coef is {coef}" if path is None else f"ptx.path is '{path}'"
            raise ValueError(f"{given}, but {missing}, or remove both")
        return self


class PolicyGradientRunConfig(OnlineRunConfig):
    """A run whose loss weighs log-probabilities with advantages."""

    loss: LossConfig = LossConfig()
    kl: KlConfig = KlConfig()

    @property
    def importance_cap(self) -> float | None:
        """Most that a token's loss is weighed with for its sampler's sake; None: it is not weighed."""
        if self.loss.importance_cap is None and self.training.max_policy_lag > 0:
            return LAG_IMPORTANCE_CAP
        return self.loss.importance_cap

    def algorithm_options(self) -> dict[str, Any]:
        """Returns what all of these algorithms depend on; a class adds what is its own."""
        options = PolicyGradientOptions(
            loss=self.loss,
            kl=self.kl,
            importance_cap=self.importance_cap,
            mask_truncated=self.reward.mask_truncated,
            needs_groups=self.needs_groups,
            max_completion_tokens=self.sampling.max_new_tokens,
        )
        return {"options": options}

    @model_validator(mode="after")
    def _kl_can_be_adapted(self) -> Self:
        rollouts = self.training.rollouts_per_step
        if self.kl.target is not None and self.kl.coef == 0:
            raise ValueError(
                f"kl.coef is 0, which no kl.target ({self.kl.target}) can adapt; give a start value above 0"
            )
        if self.kl.target is not None and self.kl.horizon * 5 <= rollouts:
            raise ValueError(
                f"kl.horizon is {self.kl.horizon}, too short for {rollouts} rollouts a step "
                f"(training.prompts_per_step * training.group_size); raise it above {rollouts // 5}"
            )
        return self


class PpoRunConfig(PolicyGradientRunConfig):
    """A PPO run."""

    algorithm = "ppo"

    critic: CriticConfig = CriticConfig()
    critic_optimizer: CriticOptimizerConfig = CriticOptimizerConfig()

    def algorithm_options(self) -> dict[str, Any]:
        """Returns the shared options and those of the algorithm itself."""
        return {**super().algorithm_options(), "critic": self.critic}

    @model_validator(mode="after")
    def _critic_is_one_or_the_other(self) -> Self:
        critic = self.critic
        if critic.kind == "separate" and critic.path is None:
            raise ValueError(
                "critic.path is required with critic.kind 'separate': name a reward model, or set critic.kind to 'head'"
            )
        if critic.kind == "head" and critic.path is not None:
            raise ValueError(
                f"critic.path is '{critic.path}', but critic.kind is 'head', which starts from zeros on the policy; "
                "remove the path, or set critic.kind to 'separate'"
            )
        if critic.kind == "head" and critic.warmup_steps > 0:
            raise ValueError(
                f"critic.warmup_steps is {critic.warmup_steps}, but critic.kind is 'head': it shares the policy's "
                "weights and cannot be trained alone; set the former to 0, or critic.kind to 'separate'"
            )
        if critic.warmup_steps >= self.training.steps:
            raise ValueError(
                f"critic.warmup_steps is {critic.warmup_steps}, so that training.steps ({self.training.steps}) leaves "
                "no step for the policy; lower the former or raise the latter"
            )
        return self


class GrpoConfig(Section):
    """Group-relative advantages."""

    normalize_std: bool = True
    """Divide by the standard deviation of the group's rewards. Dr. GRPO does not, and has loss.aggregation
    "token-sum-over-constant"."""


class GrpoRunConfig(PolicyGradientRunConfig):
    """A GRPO run."""

    algorithm = "grpo"

    training: GroupTrainingConfig = GroupTrainingConfig()
    kl: LossKlConfig = LossKlConfig()
    grpo: GrpoConfig = GrpoConfig()

    @property
    def needs_groups(self) -> bool:
        """Always: the baseline is the group."""
        return True

    def algorithm_options(self) -> dict[str, Any]:
        """Returns the shared options and those of the algorithm itself."""
        return {**super().algorithm_options(), "normalize_std": self.grpo.normalize_std}


class RlooRunConfig(PolicyGradientRunConfig):
    """A run of REINFORCE with leave-one-out baselines."""

    algorithm = "rloo"

    training: GroupTrainingConfig = GroupTrainingConfig()

    @property
    def needs_groups(self) -> bool:
        """Always: the baseline is the rest of the group."""
        return True


class ReinforceConfig(Section):
    """REINFORCE++: whitened returns of tokens."""

    baseline: Literal["none", "group"] = "none"
    """"group" takes off the mean reward of the prompt's other completions' group first."""
    gamma: float = Field(default=1.0, ge=0, le=1)
    """Discount per token."""


class ReinforceRunConfig(PolicyGradientRunConfig):
    """A REINFORCE++ run."""

    algorithm = "reinforce++"

    reinforce: ReinforceConfig = ReinforceConfig()

    @property
    def needs_groups(self) -> bool:
        """With the group's mean as a baseline."""
        return self.reinforce.baseline == "group"

    def algorithm_options(self) -> dict[str, Any]:
        """Returns the shared options and those of the algorithm itself."""
        return {**super().algorithm_options(), "baseline": self.reinforce.baseline, "gamma": self.reinforce.gamma}


class OnlineDpoConfig(Section):
    """The loss on a prompt's best and worst completion."""

    beta: float = Field(default=0.1, gt=0)
    """Temperature of the implicit reward; with "ipo", of length-averaged log-probabilities."""
    variant: PairVariant = Field(default="sigmoid", description=help_of(PAIR_VARIANTS))
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Probability that the reward service prefers the wrong one; "sigmoid" and "robust" use it."""
    max_approx_kl: float | None = Field(default=None, gt=0)
    """A step's remaining minibatches are left out once the policy has moved this far, in nats per token; absent: never.
    """


class OnlineDpoRunConfig(OnlineRunConfig):
    """A DPO run on pairs that are sampled from the policy and judged by the reward service."""

    algorithm = "online-dpo"

    training: PairTrainingConfig = PairTrainingConfig()
    dpo: OnlineDpoConfig = OnlineDpoConfig()

    @property
    def needs_groups(self) -> bool:
        """Always: a pair is two completions of one prompt."""
        return True

    def algorithm_options(self) -> dict[str, Any]:
        """Returns those of the loss on a pair."""
        return {
            **self.dpo.model_dump(exclude={"max_approx_kl"}),
            "mask_truncated": self.reward.mask_truncated,
        }

    @model_validator(mode="after")
    def _loss_has_smoothing(self) -> Self:
        require_smoothing(self.dpo.variant, self.dpo.label_smoothing)
        return self
