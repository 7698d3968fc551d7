"""Every kind of scorer, as one union of sections that are told apart by `kind`; sums of them; and how they are built.

A new kind is a file with its class and its section (a ScorerSection), and a row in PARTS.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import reduce
from operator import or_
from threading import Lock
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import Field, TypeAdapter, create_model, field_validator

from rlhf.config import KIND
from rlhf.errors import ConfigError
from services.reward.scorers.judge.scorer import JudgeScorerConfig
from services.reward.scorers.model_config import EnsembleConfig, RewardModelConfig
from services.reward.scorers.python.scorer import PythonScorerConfig
from services.reward.scorers.rules import LengthConfig, PatternConfig, SentimentConfig
from services.reward.scorers.scorer import Scorer
from services.reward.scorers.section import ScorerSection
from services.reward.scorers.sum import Component, SumScorer

S = TypeVar("S", bound=ScorerSection)

PARTS: tuple[type[ScorerSection], ...] = (
    RewardModelConfig,
    EnsembleConfig,
    SentimentConfig,
    LengthConfig,
    PatternConfig,
    JudgeScorerConfig,
    PythonScorerConfig,
)
"""The kinds that a sum may have as parts: all but a sum."""


class NamedPart(ScorerSection):
    """A named part of a weighted sum; of each kind in PARTS there is one with its keys and these."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    """Names this part in answers, and in LoadModel."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """What its reward is multiplied by; below 0 it is a penalty, 0 only shows it."""


if TYPE_CHECKING:
    ComponentConfig = NamedPart
else:
    _NAMED = tuple(create_model(f"Named{part.__name__}", __base__=(part, NamedPart)) for part in PARTS)
    ComponentConfig = reduce(or_, _NAMED)


class SumConfig(ScorerSection):
    """A weighted sum of other scorers."""

    kind: Literal["sum"]
    """model: a reward model; ensemble: several, combined; sentiment, length, pattern: rules over the completion's text;
    judge: a language model that is asked; python: a class of one's own; sum: a weighted sum of others. Each takes its
    own keys alone."""
    components: list[Annotated[ComponentConfig, Field(discriminator=KIND)]] = Field(default=[])
    """sum: its parts, at least one, each with a name and a weight; their names differ, and one weight is not 0."""

    @field_validator("components")
    @classmethod
    def _require_components(cls, value: list[ComponentConfig]) -> list[ComponentConfig]:
        if not value:
            raise ValueError("kind sum needs a component: [[scorer.components]] with name, weight and kind")
        twice = _first_twice([component.name for component in value])
        if twice is not None:
            raise ValueError(f"the name '{twice}' is there twice; give each component a name of its own")
        if all(component.weight == 0 for component in value):
            raise ValueError("every weight is 0, so every reward would be; give one of the components a weight")
        return value

    def build(self) -> Scorer[Any]:
        """Builds the parts. Raises: ConfigError naming the part."""
        with ExitStack() as built:
            components = []
            for part in self.components:
                try:
                    scorer = part.build()
                except ConfigError as error:
                    raise ConfigError(f"component '{part.name}': {error}") from error
                built.callback(scorer.close)
                components.append(Component(part.name, part.weight, scorer, waits=part.waits))
            whole = SumScorer(components)
            built.pop_all()
            return whole


if TYPE_CHECKING:
    ScorerConfig = ScorerSection
else:
    ScorerConfig = reduce(or_, (*PARTS, SumConfig))
"""A field of it needs Field(discriminator=KIND)."""

# transformers cannot load in two threads at once, and the watch's held-out scorer is built beside LoadModel's.
_ONE_AT_A_TIME = Lock()


def build_scorer(config: ScorerConfig) -> Scorer[Any]:
    """Returns the scorer. Raises: ConfigError if its files are missing or wrong."""
    with _ONE_AT_A_TIME:
        return config.build()


def scorer_config(**values: Any) -> ScorerConfig:
    """Returns the section of the kind that the values name. Raises: pydantic's ValidationError."""
    section: ScorerConfig = TypeAdapter(Annotated[ScorerConfig, Field(discriminator=KIND)]).validate_python(values)
    return section


def reloaded(config: ScorerConfig, paths: Sequence[str], component: str) -> ScorerConfig:
    """Returns the configuration with other checkpoints.

    Args:
        config: of the scorer.
        paths: one for a model, as many as there are members for an ensemble.
        component: which part of a sum gets them; empty: the scorer itself does.
    Raises: ConfigError if the scorer, or that part of it, has no checkpoints, or another number of them.
    """
    if not isinstance(config, SumConfig):
        if component:
            raise ConfigError(
                f"component is '{component}', but the scorer is no sum: it is of kind {config.kind}; leave it empty"
            )
        return _with_checkpoints(config, paths, "the scorer")
    place = next((index for index, part in enumerate(config.components) if part.name == component), None)
    if place is None:
        having = [f"'{part.name}'" for part in config.components if part.num_checkpoints]
        known = ", ".join(having) or "none of them has"
        raise ConfigError(f"component is '{component}'; name the part of the sum that has checkpoints: {known}")
    parts = list(config.components)
    parts[place] = _with_checkpoints(parts[place], paths, f"component '{component}'")
    return config.model_copy(update={"components": parts})


def _with_checkpoints(config: S, paths: Sequence[str], subject: str) -> S:
    num_needed = config.num_checkpoints
    if not num_needed:
        raise ConfigError(f"{subject} is of kind {config.kind}, which has no checkpoint to load; only models have one")
    if len(paths) != num_needed:
        raise ConfigError(
            f"model_paths has {len(paths)} entries; {subject} is of kind {config.kind} and takes {num_needed}"
        )
    twice = _first_twice(paths)
    if twice is not None:
        raise ConfigError(f"model_paths has '{twice}' twice; name each member once")
    return config.with_checkpoints(paths)


def _first_twice(names: Sequence[str]) -> str | None:
    return next((name for index, name in enumerate(names) if name in names[:index]), None)
