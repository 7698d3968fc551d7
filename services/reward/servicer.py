"""The reward service's rpcs: decode, ask the core, encode."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import grpc

from rlhf_services.reward.core import RewardCore
from rlhf_services.reward.scorer import EnsembleScore, ErrorCode, Outcome, ScoreError, TextPair, TokenPair
from rlhf_services.v1 import reward_pb2, reward_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]

_WIRE_CODES: Mapping[ErrorCode, reward_pb2.ScoreErrorCode] = MappingProxyType(
    {
        ErrorCode.INVALID_ITEM: reward_pb2.SCORE_ERROR_CODE_INVALID_ITEM,
        ErrorCode.TOO_LONG: reward_pb2.SCORE_ERROR_CODE_TOO_LONG,
        ErrorCode.NOT_FINITE: reward_pb2.SCORE_ERROR_CODE_NOT_FINITE,
    }
)


class RewardServicer(reward_pb2_grpc.RewardServiceServicer):
    """Implements rlhf_services.v1.RewardService."""

    def __init__(self, core: RewardCore) -> None:
        self._core = core

    async def Score(self, request: reward_pb2.ScoreRequest, context: Context) -> reward_pb2.ScoreResponse:
        """Scores a batch; results come back in request order."""
        outcomes = await self._core.score([_decode_pair(item) for item in request.items], request.tokenizer_digest)
        return reward_pb2.ScoreResponse(
            results=[
                _encode_outcome(item.item_id, outcome) for item, outcome in zip(request.items, outcomes, strict=True)
            ],
            model_version=self._core.info.version,
        )

    async def GetModel(
        self, request: reward_pb2.RewardServiceGetModelRequest, context: Context
    ) -> reward_pb2.RewardServiceGetModelResponse:
        """Says what is being served."""
        info = self._core.info
        return reward_pb2.RewardServiceGetModelResponse(
            model_name=info.name,
            model_version=info.version,
            tokenizer_digest=info.tokenizer_digest,
            max_sequence_tokens=info.max_sequence_tokens,
            max_items=self._core.limits.max_items,
        )


def _decode_pair(item: reward_pb2.ScoreItem) -> TextPair | TokenPair | None:
    """The item's pair, unchecked; None if it has none."""
    match item.WhichOneof("input"):
        case "text":
            return TextPair(item.text.prompt, item.text.completion)
        case "tokens":
            return TokenPair(list(item.tokens.prompt_ids), list(item.tokens.completion_ids))
        case _:
            return None


def _encode_outcome(item_id: str, outcome: Outcome) -> reward_pb2.ScoreResult:
    if isinstance(outcome, ScoreError):
        error = reward_pb2.ScoreError(code=_WIRE_CODES[outcome.code], message=outcome.message)
        return reward_pb2.ScoreResult(item_id=item_id, error=error)
    if isinstance(outcome, EnsembleScore):
        return reward_pb2.ScoreResult(item_id=item_id, reward=outcome.reward, spread=outcome.spread)
    return reward_pb2.ScoreResult(item_id=item_id, reward=outcome)
