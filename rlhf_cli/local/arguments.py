"""The flags with which services are started on this machine."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

Engine = Literal["vllm", "transformers"]
Dtype = Literal["bfloat16", "float32"]
Combine = Literal["mean", "worst", "mean_minus_std"]


def policy_arguments(model: Path, *, engine: Engine, dtype: Dtype, max_sequence_tokens: int | None = None) -> list[str]:
    """Returns the flags of a policy service for a checkpoint; no limit takes the service's own."""
    arguments = ["--model.path", str(model), "--model.engine", engine, "--model.dtype", dtype]
    limit = [] if max_sequence_tokens is None else ["--model.max_sequence_tokens", str(max_sequence_tokens)]
    return [*arguments, *limit]


def reference_arguments(model: Path, *, dtype: Dtype) -> list[str]:
    """Returns the flags of a reference service for a checkpoint."""
    return ["--model.path", str(model), "--model.dtype", dtype]


def reward_arguments(model: Path, *, dtype: Dtype) -> list[str]:
    """Returns the flags of a reward service for a reward-model checkpoint."""
    return ["--scorer.kind", "model", "--scorer.path", str(model), "--scorer.dtype", dtype]


def ensemble_arguments(members: Sequence[Path], *, combine: Combine, std_coef: float, dtype: Dtype) -> list[str]:
    """Returns the flags of a reward service for several reward models, combined."""
    paths = json.dumps([str(path) for path in members])
    how = ["--scorer.combine", combine, "--scorer.std_coef", str(std_coef), "--scorer.dtype", dtype]
    return ["--scorer.kind", "ensemble", "--scorer.paths", paths, *how]


def pattern_arguments(pattern: str, tokenizer: Path) -> list[str]:
    """Returns the flags of a reward service that gives 1 where a regular expression matches, else 0."""
    return ["--scorer.kind", "pattern", f"--scorer.pattern={pattern}", "--scorer.tokenizer", str(tokenizer)]
