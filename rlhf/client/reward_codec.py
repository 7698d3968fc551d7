"""The messages of the reward service to and from the classes of reward_types."""

import math

from google.protobuf.message import Message

from rlhf.client.reward_types import (
    Comparison,
    ComparisonItem,
    ComponentReward,
    LoadedModel,
    Reward,
    RewardError,
    RewardModel,
    RewardReport,
)
from rlhf.v1 import reward_pb2


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


def decode_model(response: reward_pb2.RewardServiceGetModelResponse) -> RewardModel:
    """Returns what is served."""
    return RewardModel(
        model_name=response.model_name,
        model_version=response.model_version,
        tokenizer_digest=response.tokenizer_digest,
        max_sequence_tokens=response.max_sequence_tokens,
        max_items=response.max_items,
        max_text_characters=response.max_text_characters,
        logit_scale=response.logit_scale,
    )


def decode_loaded(response: reward_pb2.LoadModelResponse) -> LoadedModel:
    """Returns the outcome of a swap."""
    return LoadedModel(response.model_version, response.previous_model_version, response.load_seconds)


def decode_report(report: reward_pb2.RewardReport) -> RewardReport:
    """Returns the report of one version and caller."""
    return RewardReport(
        model_version=report.model_version,
        caller=report.caller,
        item_count=report.item_count,
        window_item_count=report.window_item_count,
        baseline_item_count=report.baseline_item_count,
        baseline_mean=_optional(report, "baseline_mean"),
        reward_mean=report.reward_mean,
        reward_std=report.reward_std,
        reward_quantiles=tuple(report.reward_quantiles),
        drift=_optional(report, "drift"),
        length_correlation=_optional(report, "length_correlation"),
        repetition_mean=_optional(report, "repetition_mean"),
        spread_mean=_optional(report, "spread_mean"),
        heldout_gap=_optional(report, "heldout_gap"),
        heldout_correlation=_optional(report, "heldout_correlation"),
        warnings=tuple(report.warnings),
    )


def _decode_error(item_id: str, error: reward_pb2.ScoreError) -> RewardError:
    # A result without an outcome breaks the contract; it is an error like any other, never a reward of 0.
    name = reward_pb2.ScoreErrorCode.Name(error.code) if error.code in reward_pb2.ScoreErrorCode.values() else "unknown"
    code = name.removeprefix("SCORE_ERROR_CODE_").lower()
    return RewardError(item_id, code, error.message or "the service sent neither an answer nor an error")


def _optional(message: Message, field: str) -> float | None:
    """Returns the value of an optional field; None if it is absent."""
    return float(getattr(message, field)) if message.HasField(field) else None
