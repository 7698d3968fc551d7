"""Builds the configured scorer. Torch is imported only by those that need it: a rule is served by a light process."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from rlhf.errors import ConfigError
from services.reward.scorers.config import ComponentConfig, PartConfig, ScorerConfig
from services.reward.scorers.rules import (
    MAX_SENTIMENT_CHARACTERS,
    Decoder,
    RuleScorer,
    length_rule,
    pattern_rule,
    sentiment_rule,
)
from services.reward.scorers.scorer import Scorer
from services.reward.scorers.sum import Component, SumScorer

KINDS_THAT_WAIT = frozenset({"judge", "python"})
"""Their work is done by another process."""

# transformers cannot load in two threads at once, and the watch's held-out scorer is built beside LoadModel's.
_ONE_AT_A_TIME = Lock()


def build_scorer(config: ScorerConfig) -> Scorer[Any]:
    """Returns the scorer. Raises: ConfigError if its files are missing or wrong."""
    with _ONE_AT_A_TIME:
        return _build_sum(config.components) if config.kind == "sum" else _build_part(config)


def _build_sum(parts: Sequence[ComponentConfig]) -> Scorer[Any]:
    with ExitStack() as built:
        components = []
        for part in parts:
            try:
                scorer = _build_part(part)
            except ConfigError as error:
                raise ConfigError(f"component '{part.name}': {error}") from error
            built.callback(scorer.close)
            components.append(Component(part.name, part.weight, scorer, waits=part.kind in KINDS_THAT_WAIT))
        whole = SumScorer(components)
        built.pop_all()
        return whole


def _build_part(config: PartConfig) -> Scorer[Any]:
    if config.kind == "model":
        _require_directory("scorer.path", config.path)
        from services.reward.scorers.model import load_model_scorer

        return load_model_scorer(config, "scorer.path")
    if config.kind == "ensemble":
        return _build_ensemble(config)
    decoder = _load_decoder(config)
    if config.kind == "judge":
        from services.reward.scorers.judge.scorer import build_judge_scorer

        return build_judge_scorer(config.judge, decoder)
    if config.kind == "python":
        from services.reward.scorers.python.scorer import PythonScorer

        return PythonScorer(config.python, decoder)
    return _build_rule(config, decoder)


def _build_rule(config: PartConfig, decoder: Decoder | None) -> Scorer[Any]:
    make = partial(RuleScorer, config.kind, decoder=decoder)
    if config.kind == "length":
        settings: dict[str, Any] = {"target": config.target_length, "unit": config.length_unit}
        return make(settings, length_rule(**settings))
    if config.kind == "pattern":
        settings = {"pattern": config.pattern, "mode": config.pattern_mode}
        return make(settings, pattern_rule(**settings))
    return make({}, sentiment_rule(), max_characters=MAX_SENTIMENT_CHARACTERS)


def _build_ensemble(config: PartConfig) -> Scorer[Any]:
    for path in config.paths:
        _require_directory("scorer.paths", path)
    from services.reward.scorers.model import EnsembleScorer, load_model_scorer

    members = [load_model_scorer(config.model_copy(update={"path": path}), "scorer.paths") for path in config.paths]
    return EnsembleScorer(members, config.combine, config.std_coef)


def _load_decoder(config: PartConfig) -> Decoder | None:
    if not config.tokenizer:
        return None
    _require_directory("scorer.tokenizer", config.tokenizer)
    from services.reward.scorers.text import PairTokenizer

    return PairTokenizer(config.tokenizer, "scorer.tokenizer")


def _require_directory(field: str, path: str) -> None:
    """Raises ConfigError before torch is imported, which takes seconds."""
    if not Path(path).is_dir():
        raise ConfigError(f"{field} is '{path}': no such directory; give the folder of a Hugging Face checkpoint")
