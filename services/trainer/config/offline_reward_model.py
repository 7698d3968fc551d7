"""Configuration of reward-model training: `rlhf train reward-model --config FILE.toml`."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from rlhf.config import Section
from services.trainer.config.offline_fit import (
    FitConfig,
    OfflineModelConfig,
    OfflineOptimizerConfig,
    OfflineServerConfig,
)
from services.trainer.config.sections import CheckpointConfig, LoraConfig


class RewardModelBaseConfig(OfflineModelConfig):
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


class RewardModelOptimizerConfig(OfflineOptimizerConfig):
    """AdamW for the reward model."""


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
    optimizer: RewardModelOptimizerConfig = RewardModelOptimizerConfig()
    lora: LoraConfig | None = None
    """Train adapters instead of all weights; they are merged into the saved model. Absent: all weights are trained."""
    checkpoint: RewardModelCheckpointConfig = RewardModelCheckpointConfig()
    server: OfflineServerConfig = OfflineServerConfig()
