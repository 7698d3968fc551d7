"""Rewards from rules over the completion's text: for tests, for baselines, and as parts of a larger reward. No torch.

| kind      | reward                                                        | range                 |
|-----------|---------------------------------------------------------------|-----------------------|
| length    | 1 - abs(length - target) / target, not below -1               | [-1, 1]; 1 at target  |
| pattern   | match: 1 if the pattern is found, else 0; count: its matches  | {0, 1}; 0, 1, ... 100 |
| sentiment | VADER's compound score                                        | [-1, 1]; 0 is neutral |
"""

import re
from collections.abc import Callable
from itertools import islice
from typing import Any, Literal

from blake3 import blake3
from pydantic import Field, field_validator

from services.reward.scorers.item_texts import ItemReader
from services.reward.scorers.scorer import Decoder, ErrorCode, Item, ScoreError, ScorerInfo
from services.reward.scorers.section import TextScorerSection

MAX_MATCHES = 100
"""Matches that count; more characters of "aaaa..." must not raise the reward without bound."""

MAX_SENTIMENT_CHARACTERS = 10_000
"""VADER's time grows with the square of the words: half a second here, a minute at ten times the length."""

Rule = Callable[[str], float]


def length_rule(target: int, unit: str) -> Rule:
    """Returns the rule that pays for a completion of `target` characters, or words (split at whitespace)."""

    def rule(completion: str) -> float:
        length = len(completion.split()) if unit == "words" else len(completion)
        return max(-1.0, 1.0 - abs(length - target) / target)

    return rule


def pattern_rule(pattern: str, mode: str) -> Rule:
    """Returns the rule that pays for a pattern's matches. The pattern is the operator's: it is trusted to end."""
    compiled = re.compile(pattern)

    def rule(completion: str) -> float:
        most = 1 if mode == "match" else MAX_MATCHES
        return float(sum(1 for _ in islice(compiled.finditer(completion), most)))

    return rule


def sentiment_rule() -> Rule:
    """Returns the rule that pays for positive words: the compound score of Hutto and Gilbert's VADER lexicon (2014)."""
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyzer = SentimentIntensityAnalyzer()

    def rule(completion: str) -> float:
        return float(analyzer.polarity_scores(completion)["compound"])

    return rule


class RuleScorer:
    """A Scorer that applies a rule to the completion's text, token ids being decoded first."""

    def __init__(
        self,
        name: str,
        settings: dict[str, Any],
        rule: Rule,
        decoder: Decoder | None,
        max_characters: int | None = None,
    ) -> None:
        """Prepares a scorer.

        Args:
            name, settings: the rule's name and all that its rewards depend on; they make its version.
            rule: completion -> reward.
            decoder: turns token ids into text; None if only text is taken.
            max_characters: longest completion that the rule takes; None: any.
        """
        self._reader = ItemReader(decoder)
        digest = self._reader.tokenizer_digest
        fingerprint = blake3(repr((name, sorted(settings.items()), digest)).encode()).hexdigest()[:16]
        self.info = ScorerInfo(
            name=name, version=f"{name}-{fingerprint}", tokenizer_digest=digest, max_sequence_tokens=0
        )
        self._rule = rule
        self._max_characters = max_characters

    def prepare(self, item: Item) -> str | ScoreError:
        """Returns the completion's text."""
        completion = self._reader.read_completion(item)
        if isinstance(completion, ScoreError) or self._max_characters is None:
            return completion
        if len(completion) > self._max_characters:
            return ScoreError(
                ErrorCode.TOO_LONG,
                f"the completion has {len(completion)} characters, the rule '{self.info.name}' takes at most "
                f"{self._max_characters}; send a shorter one",
            )
        return completion

    def size_of(self, prepared: str) -> int:
        """Returns about the completion's length in tokens: rules pad nothing, but a run of long texts is kept short."""
        return 1 + len(prepared) // 4

    def score(self, batch: list[str]) -> list[float]:
        """Returns the rule's reward of each completion."""
        return [self._rule(completion) for completion in batch]

    def close(self) -> None:
        """Does nothing: a rule holds nothing."""


class LengthConfig(TextScorerSection):
    """Pays for a length."""

    kind: Literal["length"]
    target_length: int = Field(default=200, ge=1)
    """length: the length that earns most."""
    length_unit: Literal["characters", "words"] = "characters"
    """length: what is counted."""

    def build(self) -> RuleScorer:
        """Returns the rule. Raises: ConfigError."""
        settings: dict[str, Any] = {"target": self.target_length, "unit": self.length_unit}
        return RuleScorer(self.kind, settings, length_rule(**settings), self.decoder())


class PatternConfig(TextScorerSection):
    """Pays for a pattern's matches."""

    kind: Literal["pattern"]
    pattern: str = ""
    """pattern: a Python regular expression, searched in the completion."""
    pattern_mode: Literal["match", "count"] = "match"
    """pattern: match is 1 if it is found and 0 if not; count is the number of matches, up to 100."""

    @field_validator("pattern")
    @classmethod
    def _require_pattern(cls, value: str) -> str:
        if not value:
            raise ValueError("kind pattern needs a regular expression: --scorer.pattern REGEX")
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}; mend it, or escape what is meant literally") from None
        return value

    def build(self) -> RuleScorer:
        """Returns the rule. Raises: ConfigError."""
        settings = {"pattern": self.pattern, "mode": self.pattern_mode}
        return RuleScorer(self.kind, settings, pattern_rule(**settings), self.decoder())


class SentimentConfig(TextScorerSection):
    """Pays for positive words."""

    kind: Literal["sentiment"]

    def build(self) -> RuleScorer:
        """Returns the rule. Raises: ConfigError."""
        return RuleScorer(self.kind, {}, sentiment_rule(), self.decoder(), max_characters=MAX_SENTIMENT_CHARACTERS)
