"""The reward service's rpcs: decode, ask the core, encode. HTTP's native routes answer by the same methods."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

import grpc

from rlhf.errors import DeadlineExceededError
from rlhf.serving.calls import current_caller
from rlhf.v1 import reward_pb2, reward_pb2_grpc
from services.reward import wire
from services.reward.core import RewardCore

Context = grpc.aio.ServicerContext[Any, Any] | None
"""None over HTTP, where the deadline is seen to before the call comes here."""


class RewardServicer(reward_pb2_grpc.RewardServiceServicer):
    """Implements rlhf.v1.RewardService. The documentation of the HTTP routes has the methods' docstrings."""

    def __init__(self, core: RewardCore) -> None:
        self._core = core

    async def Score(self, request: reward_pb2.ScoreRequest, context: Context) -> reward_pb2.ScoreResponse:
        """Gives every item a reward or an error of its own. The call fails only for what concerns all items."""
        async with _until_deadline(context):
            answer = await self._core.score(
                [wire.decode_item(item) for item in request.items],
                tokenizer_digest=request.tokenizer_digest,
                caller=current_caller().name,
                request_id=request.request_id,
            )
            results = [
                wire.encode_outcome(item.item_id, outcome)
                for item, outcome in zip(request.items, answer.outcomes, strict=True)
            ]
            return reward_pb2.ScoreResponse(results=results, model_version=answer.model_version)

    async def Compare(self, request: reward_pb2.CompareRequest, context: Context) -> reward_pb2.CompareResponse:
        """Says for each pair how probable it is that people prefer the first (Bradley and Terry)."""
        async with _until_deadline(context):
            answer = await self._core.compare(
                [wire.decode_pair(item) for item in request.items],
                tokenizer_digest=request.tokenizer_digest,
                caller=current_caller().name,
                request_id=request.request_id,
            )
            results = [
                wire.encode_comparison(item.item_id, outcome)
                for item, outcome in zip(request.items, answer.outcomes, strict=True)
            ]
            return reward_pb2.CompareResponse(results=results, model_version=answer.model_version)

    async def GetModel(
        self, request: reward_pb2.RewardServiceGetModelRequest, context: Context
    ) -> reward_pb2.RewardServiceGetModelResponse:
        """Says which model gives the rewards, and how much one call may send."""
        info, limits = self._core.info, self._core.limits
        return reward_pb2.RewardServiceGetModelResponse(
            model_name=info.name,
            model_version=info.version,
            tokenizer_digest=info.tokenizer_digest,
            max_sequence_tokens=info.max_sequence_tokens,
            max_items=limits.max_items,
            max_text_characters=limits.max_text_characters,
            logit_scale=info.logit_scale,
        )

    async def LoadModel(self, request: reward_pb2.LoadModelRequest, context: Context) -> reward_pb2.LoadModelResponse:
        """Loads a model beside the present one, tries it, and swaps the two; whatever fails, the present one stays."""
        loaded = await self._core.load_model(list(request.model_paths), request.component)
        return reward_pb2.LoadModelResponse(**asdict(loaded))

    async def GetReport(self, request: reward_pb2.GetReportRequest, context: Context) -> reward_pb2.GetReportResponse:
        """Says how rewards have developed, by model version and caller: signs of reward hacking."""
        # In a thread: it works through the windows of every caller.
        reports = await asyncio.to_thread(self._core.report)
        return reward_pb2.GetReportResponse(reports=[reward_pb2.RewardReport(**asdict(report)) for report in reports])


@asynccontextmanager
async def _until_deadline(context: Context) -> AsyncIterator[None]:
    """Ends the block when the call's deadline has passed, and never begins it after that."""
    if context is None:
        yield
        return
    seconds = context.time_remaining()
    try:
        async with asyncio.timeout(seconds):
            if seconds is not None and seconds <= 0:
                raise TimeoutError
            yield
    except TimeoutError:
        raise DeadlineExceededError("the call's deadline has passed; give it more time, or send fewer items") from None
