"""Configuration of a generative judge."""

import re
from collections.abc import Sequence
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, ValidationInfo, field_validator

from rlhf.config import Section
from rlhf.errors import ConfigError

DEFAULT_RUBRIC = "The answer is correct, helpful and honest, does what was asked, and says no more than that needs."


class JudgeConfig(Section):
    """A language model that is asked whether an answer is good; its probability of "Yes" is the reward."""

    backend: Literal["openai", "policy"] = "openai"
    """openai: an endpoint of the OpenAI chat completions API, such as vLLM's; policy: a policy service of our own."""
    endpoint: str = ""
    """openai: the URL up to /v1, such as http://judge:8000/v1; policy: host:port."""
    model: str = ""
    """openai: the model's name at the endpoint."""
    api_key_variable: str = ""
    """openai: the environment variable that holds the key; empty: the endpoint asks for none."""
    rubric: str = Field(default=DEFAULT_RUBRIC, min_length=1)
    """What makes an answer good, in words for the judge."""
    timeout_seconds: float = Field(default=60.0, gt=0)
    """How long one question may take, repetitions included; policy: one call of up to max_concurrency questions."""
    max_retries: int = Field(default=2, ge=0, le=10)
    """openai: how often a question is repeated that the endpoint refused as busy or failed on."""
    max_concurrency: int = Field(default=16, ge=1)
    """Most questions that the judge has at a time."""
    top_logprobs: int = Field(default=20, ge=2, le=20)
    """openai: how many of the likeliest first tokens are looked at. An answer that is not among them counts as
    impossible."""
    min_answer_probability: float = Field(default=0.1, gt=0, le=1)
    """What the two answers must have together. With less the judge did not answer the question: the item fails."""
    tokenizer: str = ""
    """policy: the folder of the served model's tokenizer, with a chat template."""
    samples: int = Field(default=32, ge=1, le=256)
    """policy: how many first tokens are drawn. Each tells its exact probability; see max_uncertainty."""
    max_uncertainty: float = Field(default=0.05, gt=0, lt=0.5)
    """policy: how far the reward may be from the exact one, given the probability of all tokens that were not drawn.
    An item of which more is unknown fails."""
    version: str = ""
    """Is part of the model version that every answer names. Change it when the endpoint serves other weights under the
    same name."""

    def require_complete(self) -> None:
        """Returns if there is a judge to ask. Raises: ValueError."""
        if not self.endpoint:
            raise ValueError("kind judge needs an endpoint: --scorer.judge.endpoint http://judge:8000/v1")
        if self.backend == "policy":
            if not self.tokenizer:
                raise ValueError("backend policy needs the folder of the served model's tokenizer: judge.tokenizer")
            return
        if not self.model:
            raise ValueError("backend openai needs the model's name at the endpoint: judge.model")
        url = urlsplit(self.endpoint)
        if url.scheme not in ("http", "https") or not url.hostname:
            raise ValueError(f"endpoint is '{self.endpoint}'; give a URL such as http://judge:8000/v1")


class PythonScorerConfig(Section):
    """A user's own Python class that scores, in a process of its own (user_scorer.py has its contract)."""

    target: str = ""
    """Which class: "module:Class", or the name of an entry point of the group rlhf.scorers."""
    options: dict[str, Any] = Field(default={})
    """What the class is made with, as keyword arguments; JSON on the command line."""
    path: str = ""
    """A folder to import the module from, before all others; empty: only what is installed."""
    timeout_seconds: float = Field(default=30.0, gt=0)
    """How long the class may take for up to batch_items completions. Then its process is killed and started anew."""
    start_timeout_seconds: float = Field(default=120.0, gt=0)
    """How long its process may take to import the module and make the object."""
    batch_items: int = Field(default=64, ge=1)
    """Most completions of one call of the class."""
    max_memory_mib: int = Field(default=4096, ge=0)
    """Most memory of its process, in MiB; 0 is no limit."""
    version: str = ""
    """Is part of the model version that every answer names. Change it when the class or its data change; a change of
    target or options is seen without it."""

    @field_validator("target")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        module, colon, name = value.partition(":")
        if colon and not (module and all(part.isidentifier() for part in [*module.split("."), *name.split(".")])):
            raise ValueError('not a class\'s name; give "module:Class", or the name of an entry point')
        return value

    def require_complete(self) -> None:
        """Returns if there is a class to serve. Raises: ValueError."""
        if not self.target:
            raise ValueError("kind python needs a class: --scorer.python.target module:Class")


class PartConfig(Section):
    """What gives one reward; `kind` says which of the other keys are read."""

    kind: Literal["model", "ensemble", "sentiment", "length", "pattern", "judge", "python", "sum"]
    """model: a reward model; ensemble: several, combined; sentiment, length, pattern: rules over the completion's text;
    judge: a language model that is asked; python: a class of one's own; sum: a weighted sum of others. Each is a module
    of reward/scorers."""
    path: str = ""
    """model: directory of a transformers sequence-classification checkpoint with one label, safetensors only."""
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
    """Rules, judge, python: directory of the tokenizer that turns token ids into text; without it they take text
    alone."""
    target_length: int = Field(default=200, ge=1)
    """length: the length that earns most."""
    length_unit: Literal["characters", "words"] = "characters"
    """length: what is counted."""
    pattern: str = ""
    """pattern: a Python regular expression, searched in the completion."""
    pattern_mode: Literal["match", "count"] = "match"
    """pattern: match is 1 if it is found and 0 if not; count is the number of matches, up to 100."""
    judge: JudgeConfig = JudgeConfig()
    """judge: which language model is asked, and how."""
    python: PythonScorerConfig = PythonScorerConfig()
    """python: which class, and what it may use."""

    @field_validator("path")
    @classmethod
    def _require_path(cls, value: str, info: ValidationInfo) -> str:
        if info.data.get("kind") == "model" and not value:
            raise ValueError("kind model needs the directory of a reward model: --scorer.path DIR")
        return value

    @field_validator("paths")
    @classmethod
    def _require_members(cls, value: list[str], info: ValidationInfo) -> list[str]:
        if info.data.get("kind") == "ensemble" and len(value) < 2:
            raise ValueError("kind ensemble needs the directories of two reward models or more: --scorer.paths")
        if len(set(value)) < len(value):
            raise ValueError("a directory is there twice; name each member once")
        return value

    @field_validator("pattern")
    @classmethod
    def _require_pattern(cls, value: str, info: ValidationInfo) -> str:
        if info.data.get("kind") != "pattern":
            return value
        if not value:
            raise ValueError("kind pattern needs a regular expression: --scorer.pattern REGEX")
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}; mend it, or escape what is meant literally") from None
        return value

    @field_validator("judge")
    @classmethod
    def _require_judge(cls, value: JudgeConfig, info: ValidationInfo) -> JudgeConfig:
        if info.data.get("kind") == "judge":
            value.require_complete()
        return value

    @field_validator("python")
    @classmethod
    def _require_python(cls, value: PythonScorerConfig, info: ValidationInfo) -> PythonScorerConfig:
        if info.data.get("kind") == "python":
            value.require_complete()
        return value


class ComponentConfig(PartConfig):
    """A named part of a weighted sum: any scorer but another sum."""

    kind: Literal["model", "ensemble", "sentiment", "length", "pattern", "judge", "python"]
    """As scorer.kind."""
    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    """Names this part in answers, and in LoadModel."""
    weight: float = Field(default=1.0, allow_inf_nan=False)
    """What its reward is multiplied by; below 0 it is a penalty, 0 only shows it."""


class ScorerConfig(PartConfig):
    """What gives the rewards."""

    components: list[ComponentConfig] = Field(default=[])
    """sum: its parts, at least one, each with a name and a weight; their names differ, and one weight is not 0."""

    @field_validator("components")
    @classmethod
    def _require_components(cls, value: list[ComponentConfig], info: ValidationInfo) -> list[ComponentConfig]:
        if info.data.get("kind") != "sum":
            if value:
                raise ValueError("only kind sum has components; set scorer.kind to sum, or leave them out")
            return value
        if not value:
            raise ValueError("kind sum needs a component: [[scorer.components]] with name, weight and kind")
        twice = _first_twice([component.name for component in value])
        if twice is not None:
            raise ValueError(f"the name '{twice}' is there twice; give each component a name of its own")
        if all(component.weight == 0 for component in value):
            raise ValueError("every weight is 0, so every reward would be; give one of the components a weight")
        return value


def reloaded(config: ScorerConfig, paths: Sequence[str], component: str) -> ScorerConfig:
    """Returns the configuration with other checkpoints.

    Args:
        paths: one for a model, as many as there are members for an ensemble.
        component: which part of a sum gets them; empty: the scorer itself does.
    Raises: ConfigError if the scorer, or that part of it, has no checkpoints, or another number of them.
    """
    if config.kind != "sum":
        if component:
            raise ConfigError(
                f"component is '{component}', but the scorer is no sum: it is of kind {config.kind}; leave it empty"
            )
        return config.model_copy(update=_paths_of(config, paths, "the scorer"))
    having = [part.name for part in config.components if part.kind in ("model", "ensemble")]
    place = next((index for index, part in enumerate(config.components) if part.name == component), None)
    if place is None:
        known = ", ".join(f"'{name}'" for name in having) or "none of them has"
        raise ConfigError(f"component is '{component}'; name the part of the sum that has checkpoints: {known}")
    part = config.components[place]
    parts = list(config.components)
    parts[place] = part.model_copy(update=_paths_of(part, paths, f"component '{component}'"))
    return config.model_copy(update={"components": parts})


def _paths_of(config: PartConfig, paths: Sequence[str], subject: str) -> dict[str, object]:
    """Returns the fields that name the checkpoints."""
    if config.kind not in ("model", "ensemble"):
        raise ConfigError(f"{subject} is of kind {config.kind}, which has no checkpoint to load; only models have one")
    num_needed = 1 if config.kind == "model" else len(config.paths)
    if len(paths) != num_needed:
        raise ConfigError(
            f"model_paths has {len(paths)} entries; {subject} is of kind {config.kind} and takes {num_needed}"
        )
    twice = _first_twice(paths)
    if twice is not None:
        raise ConfigError(f"model_paths has '{twice}' twice; name each member once")
    return {"path": paths[0]} if config.kind == "model" else {"paths": list(paths)}


def _first_twice(names: Sequence[str]) -> str | None:
    return next((name for index, name in enumerate(names) if name in names[:index]), None)
