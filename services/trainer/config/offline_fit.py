"""Sections of configuration that all offline trainings share."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from rlhf.config import Port, Section
from services.trainer.config.sections import CheckpointConfig, LoraConfig, OptimizerConfig


class OfflineModelConfig(Section):
    """The model that is trained."""

    path: Path
    """Hugging Face checkpoint of a causal language model."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Element type of the forward and backward pass and of the saved model. With bfloat16 the optimizer keeps float32
    master weights."""
    device: str = Field(default="auto", min_length=1)
    """A torch device; "auto" takes CUDA where there is one, else the CPU."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: a third more time, far less memory."""


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
    model: OfflineModelConfig
    training: FitConfig = FitConfig()
    optimizer: OfflineOptimizerConfig = OfflineOptimizerConfig()
    lora: LoraConfig | None = None
    """Train low-rank adapters instead of all weights; final/ has them merged. Absent trains all weights."""
    checkpoint: CheckpointConfig = CheckpointConfig(every_steps=100)
    server: OfflineServerConfig = OfflineServerConfig()
