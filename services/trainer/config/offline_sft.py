"""Configuration of supervised fine-tuning: `rlhf train sft --config FILE.toml`."""

from typing import Literal

from pydantic import Field

from rlhf.config import Section
from services.trainer.config.offline_fit import PolicyRunConfig


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
