"""Configuration of the reward service."""

import re
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from rlhf_services.common.config import Port, Section, ServerConfig
from rlhf_services.common.limits import BatchLimitsConfig


class RewardServerConfig(ServerConfig):
    """Where the reward service listens."""

    port: Port = 50052
    """gRPC port; 0 takes a free one."""
    metrics_port: Port = 9052
    """HTTP port of Prometheus' /metrics; 0 takes a free one."""


class ScorerConfig(Section):
    """What gives the rewards: a model, several models, or a rule."""

    kind: Literal["model", "ensemble", "sentiment", "length", "pattern"]
    """model: a reward model; ensemble: several, combined (reward/ensemble_scorer.py); sentiment, length, pattern: rules
    over the completion's text (reward/rule_scorer.py)."""
    path: str = ""
    """model: directory of a transformers sequence-classification checkpoint with one label."""
    paths: list[str] = Field(default=[])
    """ensemble: directories of its members, at least two, as `path`; all of one tokenizer."""
    combine: Literal["mean", "worst", "mean_minus_std"] = "mean"
    """ensemble: mean of the members' rewards; worst: the lowest; mean_minus_std: mean - std_coef * their standard
    deviation, which pays less for what the members disagree on (Coste et al. 2023, arXiv:2310.02743)."""
    std_coef: float = Field(default=1.0, ge=0)
    """ensemble, mean_minus_std: what a standard deviation of disagreement costs; 0 is the mean."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """model, ensemble: element type of the weights."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """model, ensemble: auto (cuda if there is one), cpu, cuda or cuda:N."""
    tokenizer: str = ""
    """Rules: directory of the tokenizer that turns token ids into text; without it they take text alone."""
    target_length: int = Field(default=200, ge=1)
    """length: the length that earns most."""
    length_unit: Literal["characters", "words"] = "characters"
    """length: what is counted."""
    pattern: str = ""
    """pattern: a Python regular expression, searched in the completion."""
    pattern_mode: Literal["match", "count"] = "match"
    """pattern: match is 1 if it is found and 0 if not; count is the number of matches, up to 100."""

    @field_validator("path")
    @classmethod
    def _require_path(cls, value: str, info: ValidationInfo) -> str:
        if info.data.get("kind") == "model" and not value:
            raise ValueError("scorer.kind model needs the directory of a reward model: --scorer.path DIR")
        return value

    @field_validator("paths")
    @classmethod
    def _require_members(cls, value: list[str], info: ValidationInfo) -> list[str]:
        if info.data.get("kind") == "ensemble" and len(value) < 2:
            raise ValueError("scorer.kind ensemble needs the directories of two reward models or more: --scorer.paths")
        if len(set(value)) < len(value):
            raise ValueError("a directory is there twice; name each member once")
        return value

    @field_validator("pattern")
    @classmethod
    def _require_pattern(cls, value: str, info: ValidationInfo) -> str:
        if info.data.get("kind") != "pattern":
            return value
        if not value:
            raise ValueError("scorer.kind pattern needs a regular expression: --scorer.pattern REGEX")
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}; mend it, or escape what is meant literally") from None
        return value


class LimitsConfig(BatchLimitsConfig):
    """How much is accepted, as texts too, and how it is batched."""

    max_text_characters: int = Field(default=1_000_000, ge=1)
    """Longest prompt and completion together that is accepted as text."""


class RewardConfig(Section):
    """Serves rewards over gRPC."""

    server: RewardServerConfig = RewardServerConfig()
    scorer: ScorerConfig
    limits: LimitsConfig = LimitsConfig()
