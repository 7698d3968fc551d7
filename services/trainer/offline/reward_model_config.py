"""Configuration of reward-model training: `rlhf train reward-model --config FILE.toml`."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from rlhf_services.common.config import Section
from rlhf_services.trainer.config import OptimizerConfig


class RewardModelBaseConfig(Section):
    """The model that the reward model starts as."""

    path: Path
    """Hugging Face checkpoint of a causal language model, usually the policy's; its head is replaced by a fresh one."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Element type of the forward and backward pass and of the saved model. With bfloat16 the optimizer keeps float32
    master weights."""
    device: str = Field(default="auto", min_length=1)
    """A torch device; "auto" takes CUDA where there is one, else the CPU."""


class PreferencesConfig(Section):
    """The preferences to learn from."""

    path: Path
    """JSONL; each line has "prompt" (text) or "messages", with "chosen" and "rejected" (text), or "prompt_ids",
    "chosen_ids" and "rejected_ids" (token ids of the model's tokenizer)."""
    max_tokens: int = Field(default=1024, ge=2)
    """Pairs of which a side, with its prompt, is longer are dropped and counted; nothing is cut."""
    heldout_fraction: float = Field(default=0.1, ge=0, lt=1)
    """Share of the prompts that is kept out of training to measure the accuracy; 0 measures none."""


class TrainingConfig(Section):
    """How the preferences are learned."""

    epochs: int = Field(default=1, ge=1)
    """Passes over the training pairs; reward models overfit soon after the first."""
    pairs_per_step: int = Field(default=32, ge=1)
    """Pairs of one optimizer step."""
    micro_batch_tokens: int = Field(default=4096, ge=1)
    """Most padded tokens of one forward and backward pass. Changes memory and speed, never the result."""
    center_coef: float = Field(default=0.0, ge=0)
    """Weight of the mean square of a pair's summed scores, which keeps scores near 0 (arXiv:2312.09244)."""
    seed: int = Field(default=0, ge=0)
    """Decides the fresh head, the held-out prompts and the order of pairs."""


class RewardModelOptimizerConfig(OptimizerConfig):
    """AdamW for the reward model."""

    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate."""
    warmup_steps: int = Field(default=5, ge=0)
    """Optimizer steps over which the learning rate rises linearly to its peak."""
    final_learning_rate_fraction: float = Field(default=0.1, ge=0, le=1)
    """The learning rate falls linearly from its peak to this fraction of it at the last step; 1 keeps it constant."""


class RewardModelRunConfig(Section):
    """A training of a reward model."""

    run_dir: Path
    """Directory of the run: metrics.jsonl, reward_model_report.json, and model/, which rlhf-reward serves."""
    model: RewardModelBaseConfig
    data: PreferencesConfig
    training: TrainingConfig = TrainingConfig()
    optimizer: RewardModelOptimizerConfig = RewardModelOptimizerConfig()
