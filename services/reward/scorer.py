"""What a scorer is: the seam between the service and whatever knows how good a completion is."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol, TypeVar

Prepared = TypeVar("Prepared")


@dataclass(frozen=True, slots=True)
class TextPair:
    """A prompt and its completion as text: what the user said, and what the model answered."""

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class TokenPair:
    """A prompt (after the chat template) and its completion as token ids, without padding."""

    prompt_ids: list[int]
    completion_ids: list[int]

    @property
    def num_tokens(self) -> int:
        """Length of the whole sequence."""
        return len(self.prompt_ids) + len(self.completion_ids)


class ErrorCode(Enum):
    """Kinds of failure of a single item."""

    INVALID_ITEM = auto()
    """Malformed; it will fail again."""
    TOO_LONG = auto()
    """Longer than the scorer takes; nothing is ever cut silently."""
    NOT_FINITE = auto()
    """The scorer answered with NaN or infinity."""


@dataclass(frozen=True, slots=True)
class ScoreError:
    """Why an item has no reward. The message names the field, the value and the remedy."""

    code: ErrorCode
    message: str


@dataclass(frozen=True, slots=True)
class EnsembleScore:
    """A reward that several models gave together."""

    reward: float
    """What they were combined to."""
    spread: float
    """How far they disagree: the standard deviation of their rewards, over the members."""


Outcome = float | EnsembleScore | ScoreError
"""What becomes of one item; a scorer that is no ensemble answers plain numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScorerInfo:
    """What a scorer says of itself."""

    name: str
    """The model's path or the rule's name, as configured."""
    version: str
    """Changes whenever the scores could."""
    tokenizer_digest: str
    """Empty if it has no tokenizer."""
    max_sequence_tokens: int
    """Most tokens of prompt and completion together; 0: no limit."""


class Scorer(Protocol[Prepared]):
    """Gives rewards: higher is better. Its methods are called in threads, each by one thread at a time."""

    @property
    def info(self) -> ScorerInfo:
        """The scorer's name, version and limits; they never change."""

    def prepare(self, pair: TextPair | TokenPair) -> Prepared | ScoreError:
        """Returns the pair in the form that `score` takes, or what is wrong with it."""

    def size_of(self, prepared: Prepared) -> int:
        """Returns the length that batches are padded to, in tokens; 1 for a scorer that pads nothing."""

    def score(self, batch: list[Prepared]) -> Sequence[Outcome]:
        """Returns what becomes of each, in order. NaN and infinity are the caller's to turn into errors."""
