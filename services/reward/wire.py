"""Between the reward service's protobuf messages and the core's types."""

from collections.abc import Mapping
from types import MappingProxyType

from rlhf.v1 import reward_pb2
from services.reward.comparing import ComparisonOutcome, ComparisonPair
from services.reward.scorers.scorer import (
    ChatMessage,
    Conversation,
    ErrorCode,
    Item,
    Outcome,
    RawPair,
    Score,
    ScoreError,
    TextPair,
    TokenPair,
    TokenSequence,
)

_WIRE_CODES: Mapping[ErrorCode, reward_pb2.ScoreErrorCode] = MappingProxyType(
    {
        ErrorCode.INVALID_ITEM: reward_pb2.SCORE_ERROR_CODE_INVALID_ITEM,
        ErrorCode.TOO_LONG: reward_pb2.SCORE_ERROR_CODE_TOO_LONG,
        ErrorCode.NOT_FINITE: reward_pb2.SCORE_ERROR_CODE_NOT_FINITE,
        ErrorCode.SCORER_FAILED: reward_pb2.SCORE_ERROR_CODE_SCORER_FAILED,
        ErrorCode.TIMEOUT: reward_pb2.SCORE_ERROR_CODE_TIMEOUT,
        ErrorCode.UNAVAILABLE: reward_pb2.SCORE_ERROR_CODE_UNAVAILABLE,
    }
)


def decode_item(item: reward_pb2.ScoreItem) -> Item | None:
    """Returns the item's input, unchecked; None if it has none."""
    match item.WhichOneof("input"):
        case "text":
            return TextPair(item.text.prompt, item.text.completion)
        case "tokens":
            return TokenPair(list(item.tokens.prompt_ids), list(item.tokens.completion_ids))
        case "conversation":
            return Conversation(tuple(ChatMessage(each.role, each.content) for each in item.conversation.messages))
        case "raw":
            return RawPair(item.raw.prompt, item.raw.completion)
        case "sequence":
            return TokenSequence(list(item.sequence.ids))
        case _:
            return None


def decode_pair(item: reward_pb2.ComparisonItem) -> ComparisonPair:
    """Returns the pair, unchecked."""
    return ComparisonPair(decode_item(item.first), decode_item(item.second), item.margin)


def encode_outcome(item_id: str, outcome: Outcome) -> reward_pb2.ScoreResult:
    """Returns the result of one item."""
    if isinstance(outcome, ScoreError):
        return reward_pb2.ScoreResult(item_id=item_id, error=_encode_error(outcome))
    if not isinstance(outcome, Score):
        return reward_pb2.ScoreResult(item_id=item_id, reward=outcome)
    return reward_pb2.ScoreResult(
        item_id=item_id,
        reward=outcome.reward,
        spread=outcome.spread,
        components=[
            reward_pb2.ComponentReward(name=part.name, weight=part.weight, reward=part.reward, spread=part.spread)
            for part in outcome.components
        ],
    )


def encode_comparison(item_id: str, outcome: ComparisonOutcome) -> reward_pb2.ComparisonResult:
    """Returns the result of one pair."""
    if isinstance(outcome, ScoreError):
        return reward_pb2.ComparisonResult(item_id=item_id, error=_encode_error(outcome))
    comparison = reward_pb2.Comparison(
        probability=outcome.probability, first_reward=outcome.first_reward, second_reward=outcome.second_reward
    )
    return reward_pb2.ComparisonResult(item_id=item_id, comparison=comparison)


def _encode_error(error: ScoreError) -> reward_pb2.ScoreError:
    return reward_pb2.ScoreError(code=_WIRE_CODES[error.code], message=error.message)
