"""The sections of reward models and their ensembles; apart from model.py, which imports torch."""

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field, field_validator

from services.reward.scorers.scorer import Scorer
from services.reward.scorers.section import ScorerSection, require_directory


class _WeightsSection(ScorerSection):
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """model, ensemble: element type of the weights."""
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """model, ensemble: auto (cuda if there is one), cpu, cuda or cuda:N."""


class RewardModelConfig(_WeightsSection):
    """A reward model."""

    kind: Literal["model"]
    path: str = ""
    """model: directory of a transformers sequence-classification checkpoint with one label, safetensors only."""

    @field_validator("path")
    @classmethod
    def _require_path(cls, value: str) -> str:
        if not value:
            raise ValueError("kind model needs the directory of a reward model: --scorer.path DIR")
        return value

    @property
    def num_checkpoints(self) -> int:
        """One."""
        return 1

    def with_checkpoints(self, paths: Sequence[str]) -> Self:
        """Returns the section with another checkpoint."""
        return self.model_copy(update={"path": paths[0]})

    def build(self) -> Scorer[list[int]]:
        """Loads the model. Raises: ConfigError."""
        require_directory("scorer.path", self.path)
        from services.reward.scorers.model import load_model_scorer

        return load_model_scorer(self.path, self.dtype, self.device)


class EnsembleConfig(_WeightsSection):
    """Several reward models, combined."""

    kind: Literal["ensemble"]
    paths: list[str] = Field(default=[])
    """ensemble: directories of its members, at least two, as `path`; all of one tokenizer."""
    combine: Literal["mean", "worst", "mean_minus_std"] = "mean"
    """ensemble: mean of the members' rewards; worst: the lowest; mean_minus_std: mean - std_coef * their standard
    deviation, which pays less for what the members disagree on (Coste et al. 2023, arXiv:2310.02743)."""
    std_coef: float = Field(default=1.0, ge=0)
    """ensemble, mean_minus_std: what a standard deviation of disagreement costs; 0 is the mean."""

    @field_validator("paths")
    @classmethod
    def _require_members(cls, value: list[str]) -> list[str]:
        if len(value) < 2:
            raise ValueError("kind ensemble needs the directories of two reward models or more: --scorer.paths")
        if len(set(value)) < len(value):
            raise ValueError("a directory is there twice; name each member once")
        return value

    @property
    def num_checkpoints(self) -> int:
        """One a member."""
        return len(self.paths)

    def with_checkpoints(self, paths: Sequence[str]) -> Self:
        """Returns the section with other members."""
        return self.model_copy(update={"paths": list(paths)})

    def build(self) -> Scorer[list[int]]:
        """Loads the members. Raises: ConfigError."""
        for path in self.paths:
            require_directory("scorer.paths", path)
        from services.reward.scorers.model import EnsembleScorer, load_model_scorer

        members = [load_model_scorer(path, self.dtype, self.device, "scorer.paths") for path in self.paths]
        return EnsembleScorer(members, self.combine, self.std_coef)
