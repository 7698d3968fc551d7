"""What a scorer is: the seam between the service and whatever knows how good a completion is."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Protocol, TypeVar, runtime_checkable

from rlhf.client.reward_types import ComponentReward

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


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a conversation."""

    role: str
    """system, user, assistant, or another that the model's chat template knows."""
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages of which the last, the assistant's, is scored. At least two."""

    messages: tuple[ChatMessage, ...]


@dataclass(frozen=True, slots=True)
class RawPair:
    """A prompt and its completion after the chat template, special tokens written out. The prompt may be empty."""

    prompt: str
    completion: str
    add_special_tokens: bool = False
    """Whether the tokenizer adds what it adds to any text, such as a token of beginning; so vLLM's routes have it."""


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """Prompt and completion as the token ids of one sequence, without padding. At least two."""

    ids: list[int]


Item = TextPair | TokenPair | Conversation | RawPair | TokenSequence
"""What a caller sends; a scorer says of the forms that it cannot read that they are invalid."""


def completion_of(item: Item) -> str | Sequence[int]:
    """Returns the completion as the caller sent it, text or token ids; of a TokenSequence the whole of it."""
    match item:
        case TextPair() | RawPair():
            return item.completion
        case TokenPair():
            return item.completion_ids
        case Conversation():
            return item.messages[-1].content if item.messages else ""
        case TokenSequence():
            return item.ids


class ErrorCode(Enum):
    """Kinds of failure of a single item."""

    INVALID_ITEM = auto()
    """Malformed; it will fail again."""
    TOO_LONG = auto()
    """Longer than the scorer takes; nothing is ever cut silently."""
    NOT_FINITE = auto()
    """The scorer answered with NaN or infinity."""
    SCORER_FAILED = auto()
    """The scorer raised, or answered what is no reward."""
    TIMEOUT = auto()
    """The scorer took longer than it may; it may be repeated."""
    UNAVAILABLE = auto()
    """What the scorer itself depends on is away; it may be repeated later."""


@dataclass(frozen=True, slots=True)
class ScoreError:
    """Why an item has no reward. The message names the field, the value and the remedy."""

    code: ErrorCode
    message: str


class ScorerError(Exception):
    """Raised by a scorer for a whole batch. Its items are then scored one by one, to find the culprit.

    UNAVAILABLE is believed at once, for all items: what is away for one is away for the others.
    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Score:
    """A reward, and what it is made of."""

    reward: float
    spread: float | None = None
    """How far the models of an ensemble disagree: the standard deviation of their rewards. None: one scorer."""
    components: tuple[ComponentReward, ...] = ()
    """The parts of a weighted sum, in the configuration's order; empty for every other scorer."""


Outcome = float | Score | ScoreError
"""What becomes of one item; a scorer that has only a number to say answers plain numbers."""


def reward_of(outcome: float | Score) -> float:
    """Returns the reward alone."""
    return outcome.reward if isinstance(outcome, Score) else outcome


@dataclass(frozen=True, slots=True)
class Observation:
    """An item that has got a reward, as the watch over reward hacking sees it."""

    reward: float
    spread: float | None
    completion: str | Sequence[int]
    """As completion_of says."""
    item: Item
    """What a held-out scorer is asked."""


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
    logit_scale: float = 1.0
    """What a difference of two rewards is multiplied by to be one of the model's logits."""
    pads: bool = False
    """Whether a batch is padded to its longest item, so that like lengths belong together."""


class Decoder(Protocol):
    """Turns token ids into text: the part of a tokenizer that rules need."""

    @property
    def vocab_size(self) -> int:
        """Ids from 0 to vocab_size - 1 are known."""

    @property
    def digest(self) -> str:
        """Digest of the vocabulary and special ids."""

    def decode(self, ids: list[int]) -> str:
        """Returns the text, special tokens left out."""

    def without_special_tokens(self, text: str) -> str:
        """Returns a text without the special tokens that are written out in it."""


class Scorer(Protocol[Prepared]):
    """Gives rewards: higher is better. `prepare` is called by one thread at a time, and `score` by one of its own."""

    @property
    def info(self) -> ScorerInfo:
        """The scorer's name, version and limits; they never change."""

    def prepare(self, item: Item) -> Prepared | ScoreError:
        """Returns the item in the form that `score` takes, or what is wrong with it. Texts come checked: not empty."""

    def size_of(self, prepared: Prepared) -> int:
        """Returns the item's length in tokens, or about; at least 1."""

    def score(self, batch: list[Prepared]) -> Sequence[Outcome]:
        """Returns what becomes of each, in order. NaN and infinity are the caller's to turn into errors.

        Raises: ScorerError, or anything else; the batch is then run again in parts, to find whose fault it is.
        """

    def close(self) -> None:
        """Frees what the scorer holds: memory, processes, connections. Nothing is asked of it afterwards."""


@runtime_checkable
class PairScorer(Scorer[Prepared], Protocol[Prepared]):
    """A Scorer that is asked for two completions together, rather than for their difference: a judge."""

    def compare(self, batch: list[tuple[Prepared, Prepared]]) -> Sequence[float | ScoreError]:
        """Returns for each pair the probability that the first is the better one. Raises as `score` does."""
