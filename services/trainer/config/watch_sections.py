"""Sections of configuration that look at a run and change nothing of what it learns."""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from rlhf.config import Section
from services.trainer.config.sections import Target


class WatchConfig(Section):
    """What the alerts of the deployment hold a run to."""

    kl_budget: float = Field(default=20.0, gt=0)
    """KL to the reference, in nats per completion, past which somebody should look; the run itself goes on."""


class EvaluationConfig(Section):
    """Held-out prompts that the policy in training answers now and then, sampled as the run samples."""

    prompts_path: Path | None = None
    """JSONL as prompts.path, of prompts that are not trained on; absent: no evaluation."""
    every_steps: int = Field(default=10, ge=1)
    """Steps between two evaluations; the first is before the first step, the last after the last."""
    num_prompts: int = Field(default=64, ge=1)
    """The first so many prompts of the file; all of them if it has fewer."""
    completions: int = Field(default=1, ge=1, le=256)
    """Completions of each prompt."""
    gold_target: Target | None = None
    """"host:port" of another reward service, which the run is not trained on; absent: none."""

    @model_validator(mode="after")
    def _gold_has_prompts(self) -> Self:
        if self.gold_target is not None and self.prompts_path is None:
            raise ValueError(
                f"evaluation.gold_target is '{self.gold_target}', but evaluation.prompts_path is absent: name a JSONL "
                "file of held-out prompts, or remove the target"
            )
        return self
