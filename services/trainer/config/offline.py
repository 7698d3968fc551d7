"""Configuration of trainings on data: `rlhf train sft`, `reward-model` and `dpo`."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from rlhf.algorithms.variants import VARIANTS, help_of
from rlhf.config import Port, Section
from rlhf.learning.config import LoraConfig, OptimizerConfig
from rlhf.serving.directory import REFERENCE
from services.trainer.config.sections import AnyVariant, CheckpointConfig, ModelConfig, Target, require_smoothing


class FitConfig(Section):
    """How the examples are learned."""

    epochs: int = Field(default=1, ge=1)
    """Passes over the examples, each in an order of its own."""
    examples_per_step: int = Field(default=32, ge=1)
    """Examples of one optimizer step; the last step of an epoch takes what is left."""
    micro_batch_tokens: int = Field(default=4096, ge=1)
    """Most tokens of one forward and backward pass. Changes memory and speed, never the result."""
    validate_every_steps: int = Field(default=0, ge=0)
    """Steps between two measurements on the held-out examples; 0 measures at the end alone."""
    seed: int = Field(default=0, ge=0)
    """Decides the held-out examples and the order of the others."""


class OfflineOptimizerConfig(OptimizerConfig):
    """AdamW with linear warm-up and linear decay."""

    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate."""
    warmup_steps: int = Field(default=5, ge=0)
    """Optimizer steps over which the learning rate rises linearly to its peak."""
    final_learning_rate_fraction: float = Field(default=0.1, ge=0, le=1)
    """The learning rate falls linearly from its peak to this fraction of it at the last step; 1 keeps it constant."""


class OfflineServerConfig(Section):
    """Where an offline training can be watched."""

    metrics_port: Port | None = None
    """HTTP port of Prometheus' /metrics while it trains, on the first rank; absent: none."""


class PolicyRunConfig(Section):
    """What all trainings of a policy on data have."""

    run_dir: Path
    """Directory of the run: metrics.jsonl, checkpoints/, and at the end final/ (the policy, in Hugging Face form)."""
    model: ModelConfig
    training: FitConfig = FitConfig()
    optimizer: OfflineOptimizerConfig = OfflineOptimizerConfig()
    lora: LoraConfig | None = None
    """Train low-rank adapters instead of all weights; final/ has them merged. Absent trains all weights."""
    checkpoint: CheckpointConfig = CheckpointConfig(every_steps=100)
    server: OfflineServerConfig = OfflineServerConfig()


class SftDataConfig(Section):
    """The conversations to learn from."""

    path: str = Field(min_length=1)
    """JSONL or Parquet file, folder of a data set, or "name" or "name:config" of one on the Hugging Face hub. Rows have
    "messages", or "prompt" and "completion", or "prompt_ids" and "completion_ids"."""
    split: str = "train"
    """Split of a data set."""
    max_tokens: int = Field(default=1024, ge=2)
    """Longer examples are dropped and counted; nothing is cut."""
    train_on: Literal["all", "last"] = "all"
    """Which assistant turns of "messages" are trained."""
    heldout_fraction: float = Field(default=0.0, ge=0, lt=1)
    """Share of the prompts that is kept out of training to measure the loss; 0 measures none."""


class SftRunConfig(PolicyRunConfig):
    """A supervised fine-tuning."""

    data: SftDataConfig


class RewardModelBaseConfig(ModelConfig):
    """The model that the reward model starts as, usually the policy's; its head is replaced by a fresh one."""


class PreferencesConfig(Section):
    """The preferences to learn from."""

    path: Path
    """JSONL or Parquet file, or a data set's name ("name" or "name:config"), with pairs ("prompt" or "messages",
    "chosen", "rejected"; optional "margin", and "label" or "chosen_probability") or rankings ("prompt" or "messages",
    "completions", best first or with "ranks"); token ids go by "prompt_ids", "chosen_ids", "rejected_ids",
    "completion_ids"."""
    split: str = Field(default="train", min_length=1)
    """Split of a data set; a file has but one."""
    heldout_path: Path | None = None
    """Preferences of their own to measure on, in the same form; without it some of the prompts of `path` are kept."""
    heldout_split: str = Field(default="test", min_length=1)
    """Split of heldout_path."""
    heldout_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of the prompts of `path` that is kept out of training to measure on; 0 measures none. Without meaning where
    heldout_path is set."""
    max_tokens: int = Field(default=1024, ge=2)
    """Pairs of which a side, with its prompt, is longer are left out and counted; nothing is cut."""
    group_by_prompt: bool = False
    """Make all preferences of one prompt one batch element: each distinct completion is then passed through the model
    once an epoch, and every prompt weighs the same. Rankings are one element in any case."""


class TrainingConfig(FitConfig):
    """How the preferences are learned. An example is a pair or a ranking."""

    center_coef: float = Field(default=0.0, ge=0)
    """Weight of the mean square of a pair's summed scores, which keeps scores near 0 (arXiv:2312.09244)."""


class EnsembleConfig(Section):
    """Several reward models in one command, each with a head and an order of examples of its own."""

    members: int = Field(default=1, ge=1)
    """How many; the reward service combines them (scorer.kind ensemble). Member i has seed training.seed + i."""
    data: Literal["all", "bootstrap"] = "all"
    """all: every member learns from all training examples; bootstrap: from as many drawn with replacement, so that
    members differ more and each is less good."""


class RewardModelCheckpointConfig(CheckpointConfig):
    """When a training saves what it needs to go on. A member that is finished is never trained again."""

    every_steps: int = Field(default=0, ge=0)
    """Optimizer steps between two checkpoints; 0 writes one only when the run is stopped."""


class RewardModelRunConfig(Section):
    """A training of a reward model, or of an ensemble."""

    run_dir: Path
    """Directory of the run: metrics.jsonl, reward_model_report.json and .png, and model/, which rlhf-reward serves. An
    ensemble has model-0/, model-1/ ... and each member's metrics in member-0/, member-1/ ..."""
    model: RewardModelBaseConfig
    data: PreferencesConfig
    training: TrainingConfig = TrainingConfig()
    ensemble: EnsembleConfig = EnsembleConfig()
    optimizer: OfflineOptimizerConfig = OfflineOptimizerConfig()
    lora: LoraConfig | None = None
    """Train adapters instead of all weights; they are merged into the saved model. Absent: all weights are trained."""
    checkpoint: RewardModelCheckpointConfig = RewardModelCheckpointConfig()
    server: OfflineServerConfig = OfflineServerConfig()


class DpoDataConfig(Section):
    """The preferences to learn from."""

    path: str = Field(min_length=1)
    """JSONL or Parquet file, folder of a data set, or "name" or "name:config" of one on the Hugging Face hub. Rows are
    pairs or rankings, as for reward models; for "kto" also "prompt", "completion" and "label" (true or false)."""
    split: str = "train"
    """Split of a data set."""
    max_tokens: int = Field(default=1024, ge=2)
    """Pairs of which a side, with its prompt, is longer are dropped and counted; nothing is cut."""
    heldout_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of the prompts that is kept out of training to measure the accuracy; 0 measures none."""


class DpoConfig(Section):
    """The loss. Formulas and sources: docs/training.md."""

    variant: AnyVariant = Field(default="sigmoid", description=help_of(VARIANTS))
    beta: float | None = Field(default=None, gt=0)
    """How strongly the policy is held to the reference; absent takes 0.1, and 2.0 for "simpo". "orpo" has none."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of the labels that are thought to be wrong, for "sigmoid" and "robust"."""
    nll_coef: float = Field(default=0.0, ge=0)
    """Weight of the chosen completion's negative log-likelihood per token, besides the loss (arXiv:2404.19733)."""
    simpo_margin: float = Field(default=1.0, ge=0)
    """By how much the implied rewards are to differ in "simpo"."""
    odds_weight: float = Field(default=0.1, gt=0)
    """Weight of the odds ratio in "orpo"."""
    desirable_weight: float = Field(default=1.0, ge=0)
    """Weight of good completions in "kto"."""
    undesirable_weight: float = Field(default=1.0, ge=0)
    """Weight of bad completions in "kto"."""

    @property
    def beta_in_use(self) -> float:
        """The beta given, or the variant's usual one."""
        return VARIANTS[self.variant].usual_beta if self.beta is None else self.beta

    @property
    def needs_reference(self) -> bool:
        """Whether log-probabilities under the reference are part of the loss."""
        return VARIANTS[self.variant].needs_reference

    @model_validator(mode="after")
    def _fields_fit_the_variant(self) -> Self:
        require_smoothing(self.variant, self.label_smoothing)
        if self.nll_coef > 0 and not VARIANTS[self.variant].takes_nll:
            raise ValueError(
                f"dpo.nll_coef is {self.nll_coef}, but dpo.variant '{self.variant}' takes no such term; set it to 0"
            )
        return self


class DpoServicesConfig(Section):
    """Where the reference's log-probabilities come from. They are computed once and kept beside the data."""

    reference_target: Target = REFERENCE.local_target
    """"host:port" of the reference service, which serves the model that training starts from."""
    reference_version: str = ""
    """Take kept log-probabilities of this reference version without calling the service; empty asks the service."""
    wait_for_services_seconds: float = Field(default=300.0, ge=0)
    """How long the service may be away before the run ends with an error."""
    reference_deadline_seconds: float = Field(default=600.0, gt=0)
    """Longest time for one call."""
    reference_items_per_call: int = Field(default=64, ge=1)
    """Completions sent in one call."""


class DpoOptimizerConfig(OfflineOptimizerConfig):
    """AdamW with linear warm-up and linear decay."""

    learning_rate: float = Field(default=1e-6, gt=0)
    """Peak learning rate."""


class DpoRunConfig(PolicyRunConfig):
    """A training on preferences."""

    data: DpoDataConfig
    dpo: DpoConfig = DpoConfig()
    services: DpoServicesConfig = DpoServicesConfig()
    optimizer: DpoOptimizerConfig = DpoOptimizerConfig()
