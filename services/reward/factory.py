"""Builds the configured scorer. Torch is imported only by those that need it: a rule is served by a light process."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from rlhf_services.common.errors import ConfigError
from rlhf_services.reward.config import ScorerConfig
from rlhf_services.reward.rule_scorer import (
    MAX_SENTIMENT_CHARACTERS,
    Decoder,
    RuleScorer,
    length_rule,
    pattern_rule,
    sentiment_rule,
)
from rlhf_services.reward.scorer import Scorer


def build_scorer(config: ScorerConfig) -> Scorer[Any]:
    """Returns the scorer. Raises: ConfigError if its files are missing or wrong."""
    if config.kind == "model":
        _require_directory("scorer.path", config.path)
        from rlhf_services.reward.model_scorer import load_model_scorer

        with _naming("scorer.path"):
            return load_model_scorer(config)
    if config.kind == "ensemble":
        return _build_ensemble(config)
    make = partial(RuleScorer, config.kind, decoder=_load_decoder(config))
    if config.kind == "length":
        settings: dict[str, Any] = {"target": config.target_length, "unit": config.length_unit}
        return make(settings, length_rule(**settings))
    if config.kind == "pattern":
        settings = {"pattern": config.pattern, "mode": config.pattern_mode}
        return make(settings, pattern_rule(**settings))
    return make({}, sentiment_rule(), max_characters=MAX_SENTIMENT_CHARACTERS)


def _build_ensemble(config: ScorerConfig) -> Scorer[Any]:
    for path in config.paths:
        _require_directory("scorer.paths", path)
    from rlhf_services.reward.ensemble_scorer import EnsembleScorer
    from rlhf_services.reward.model_scorer import load_model_scorer

    with _naming("scorer.paths"):
        members = [load_model_scorer(config.model_copy(update={"path": path})) for path in config.paths]
    return EnsembleScorer(members, config.combine, config.std_coef)


def _load_decoder(config: ScorerConfig) -> Decoder | None:
    if not config.tokenizer:
        return None
    _require_directory("scorer.tokenizer", config.tokenizer)
    from rlhf_services.reward.tokenizing import PairTokenizer

    with _naming("scorer.tokenizer"):
        return PairTokenizer(config.tokenizer)


def _require_directory(field: str, path: str) -> None:
    """Raises ConfigError before torch is imported, which takes seconds."""
    if not Path(path).is_dir():
        raise ConfigError(f"{field} is '{path}': no such directory; give the folder of a Hugging Face checkpoint")


@contextmanager
def _naming(field: str) -> Iterator[None]:
    """Makes the errors of models.loading, which speak of model.path, name the field that is meant here."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(str(error).replace("model.path", field)) from error
