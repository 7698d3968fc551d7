"""What goes to a reward service and what comes back, as plain Python: items, rewards, comparisons, reports."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from google.protobuf.message import Message

from rlhf.v1 import reward_pb2

RETRYABLE_CODES = frozenset({"timeout", "unavailable"})
"""Item errors that another try may mend."""


@dataclass(frozen=True, slots=True)
class ScoreItem:
    """A completion to score; make it with `text`, `tokens`, `conversation`, `raw` or `sequence`."""

    message: reward_pb2.ScoreItem

    @classmethod
    def text(cls, prompt: str, completion: str, item_id: str = "") -> "ScoreItem":
        """Returns an item of plain text; the service applies its tokenizer and chat template."""
        pair = reward_pb2.TextPair(prompt=prompt, completion=completion)
        return cls(reward_pb2.ScoreItem(item_id=item_id, text=pair))

    @classmethod
    def tokens(cls, prompt_ids: Sequence[int], completion_ids: Sequence[int], item_id: str = "") -> "ScoreItem":
        """Returns an item of token ids of the service's own tokenizer."""
        pair = reward_pb2.TokenPair(prompt_ids=prompt_ids, completion_ids=completion_ids)
        return cls(reward_pb2.ScoreItem(item_id=item_id, tokens=pair))

    @classmethod
    def conversation(cls, messages: Sequence[Mapping[str, str]], item_id: str = "") -> "ScoreItem":
        """Returns an item of messages such as {"role": "user", "content": "Hi"}; the last one is scored.

        The service applies its chat template. The last message must be the assistant's.
        """
        encoded = [reward_pb2.ChatMessage(role=message["role"], content=message["content"]) for message in messages]
        return cls(reward_pb2.ScoreItem(item_id=item_id, conversation=reward_pb2.Conversation(messages=encoded)))

    @classmethod
    def raw(cls, prompt: str, completion: str, item_id: str = "") -> "ScoreItem":
        """Returns an item of text that has been through the chat template, special tokens written out."""
        return cls(reward_pb2.ScoreItem(item_id=item_id, raw=reward_pb2.RawText(prompt=prompt, completion=completion)))

    @classmethod
    def sequence(cls, ids: Sequence[int], item_id: str = "") -> "ScoreItem":
        """Returns an item of the ids of prompt and completion in one, in the service's own tokenizer."""
        return cls(reward_pb2.ScoreItem(item_id=item_id, sequence=reward_pb2.TokenSequence(ids=ids)))


@dataclass(frozen=True, slots=True)
class ComparisonItem:
    """Two completions of one prompt, to be compared."""

    first: ScoreItem
    """The one whose probability is asked for."""
    second: ScoreItem
    margin: float = 0.0
    """By how much the first must be ahead to count as equal, in the units of the model's logits."""
    item_id: str = ""


@dataclass(frozen=True, slots=True)
class ComponentReward:
    """One part of a weighted sum."""

    name: str
    """As the service's configuration has it."""
    weight: float
    """What the reward is multiplied by in the sum."""
    reward: float
    """What this scorer alone gave, before it is multiplied."""
    spread: float | None = None
    """As Reward.spread."""


@dataclass(frozen=True, slots=True)
class Reward:
    """The reward of one item."""

    item_id: str
    reward: float
    spread: float | None = None
    """Standard deviation of the rewards of an ensemble's members; None from a single scorer."""
    components: tuple[ComponentReward, ...] = ()
    """What a weighted sum is made of; empty if the reward is not a sum."""


@dataclass(frozen=True, slots=True)
class RewardError:
    """Why one item has no reward."""

    item_id: str
    code: str
    """One of "invalid_item", "too_long", "not_finite", "scorer_failed", "timeout", "unavailable"."""
    message: str

    @property
    def is_retryable(self) -> bool:
        """Whether the same item may well get a reward if it is sent again later."""
        return self.code in RETRYABLE_CODES


@dataclass(frozen=True, slots=True)
class ScoreBatch:
    """The results of a batch, in the order of its items."""

    results: list[Reward | RewardError]
    model_version: str


@dataclass(frozen=True, slots=True)
class ManyScores:
    """The results of many items, in their order, however many calls they took."""

    results: list[Reward | RewardError]
    model_versions: tuple[str, ...]
    """Each version that scored some of them, in the order of the items; several if the service changed its model."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How the two completions of one item compare."""

    item_id: str
    probability: float
    """That people prefer the first, from 0 to 1."""
    first_reward: float | None = None
    second_reward: float | None = None


@dataclass(frozen=True, slots=True)
class ComparisonBatch:
    """The results of a batch of comparisons, in the order of its items."""

    results: list[Comparison | RewardError]
    model_version: str


@dataclass(frozen=True, slots=True)
class RewardModel:
    """What a reward service serves; the fields are those of RewardServiceGetModelResponse."""

    model_name: str
    model_version: str
    tokenizer_digest: str
    max_sequence_tokens: int
    max_items: int
    max_text_characters: int = 0
    logit_scale: float = 1.0


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that a service now serves in place of another."""

    model_version: str
    previous_model_version: str
    load_seconds: float


@dataclass(frozen=True, slots=True)
class RewardReport:
    """How the rewards of one model version for one caller have developed; the fields are those of the message."""

    model_version: str
    caller: str
    item_count: int
    window_item_count: int
    baseline_item_count: int
    baseline_mean: float | None
    reward_mean: float
    reward_std: float
    reward_quantiles: tuple[float, ...]
    drift: float | None
    length_correlation: float | None
    repetition_mean: float | None
    spread_mean: float | None
    heldout_gap: float | None
    heldout_correlation: float | None
    warnings: tuple[str, ...]


def encode_comparison(item: ComparisonItem) -> reward_pb2.ComparisonItem:
    """Returns the message."""
    return reward_pb2.ComparisonItem(
        item_id=item.item_id, first=item.first.message, second=item.second.message, margin=item.margin
    )


def decode_score(result: reward_pb2.ScoreResult) -> Reward | RewardError:
    """Returns the reward of an item, or why there is none."""
    if result.WhichOneof("outcome") != "reward":
        return _decode_error(result.item_id, result.error)
    if not math.isfinite(result.reward):
        return RewardError(result.item_id, "not_finite", f"the service sent the reward {result.reward}")
    components = tuple(
        ComponentReward(part.name, part.weight, part.reward, _optional(part, "spread")) for part in result.components
    )
    return Reward(result.item_id, result.reward, _optional(result, "spread"), components)


def decode_comparison(result: reward_pb2.ComparisonResult) -> Comparison | RewardError:
    """Returns how the two completions of an item compare, or why that is not known."""
    if result.WhichOneof("outcome") != "comparison":
        return _decode_error(result.item_id, result.error)
    comparison = result.comparison
    return Comparison(
        result.item_id,
        comparison.probability,
        _optional(comparison, "first_reward"),
        _optional(comparison, "second_reward"),
    )


def _decode_error(item_id: str, error: reward_pb2.ScoreError) -> RewardError:
    # A result without an outcome breaks the contract; it is an error like any other, never a reward of 0.
    name = reward_pb2.ScoreErrorCode.Name(error.code) if error.code in reward_pb2.ScoreErrorCode.values() else "unknown"
    code = name.removeprefix("SCORE_ERROR_CODE_").lower()
    return RewardError(item_id, code, error.message or "the service sent neither an answer nor an error")


def _optional(message: Message, field: str) -> float | None:
    """Returns the value of an optional field; None if it is absent."""
    return float(getattr(message, field)) if message.HasField(field) else None
