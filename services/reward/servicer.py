"""The reward service's rpcs: decode, ask the core, encode. HTTP's native routes answer by the same functions."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from rlhf.errors import DeadlineExceededError
from rlhf.serving.calls import current_caller
from rlhf.v1 import reward_pb2, reward_pb2_grpc
from services.reward import wire
from services.reward.core import RewardCore

Context = grpc.aio.ServicerContext[Any, Any]


class RewardServicer(reward_pb2_grpc.RewardServiceServicer):
    """Implements rlhf.v1.RewardService."""

    def __init__(self, core: RewardCore) -> None:
        self._core = core

    async def Score(self, request: reward_pb2.ScoreRequest, context: Context) -> reward_pb2.ScoreResponse:
        """As `score`."""
        async with _until_deadline(context):
            return await score(self._core, request)

    async def Compare(self, request: reward_pb2.CompareRequest, context: Context) -> reward_pb2.CompareResponse:
        """As `compare`."""
        async with _until_deadline(context):
            return await compare(self._core, request)

    async def GetModel(
        self, request: reward_pb2.RewardServiceGetModelRequest, context: Context
    ) -> reward_pb2.RewardServiceGetModelResponse:
        """As `get_model`."""
        return await get_model(self._core, request)

    async def LoadModel(self, request: reward_pb2.LoadModelRequest, context: Context) -> reward_pb2.LoadModelResponse:
        """As `load_model`."""
        return await load_model(self._core, request)

    async def GetReport(self, request: reward_pb2.GetReportRequest, context: Context) -> reward_pb2.GetReportResponse:
        """As `get_report`."""
        return await get_report(self._core, request)


async def score(core: RewardCore, request: reward_pb2.ScoreRequest) -> reward_pb2.ScoreResponse:
    """Gives every item a reward or an error of its own. The call fails only for what concerns all items."""
    answer = await core.score(
        [wire.decode_item(item) for item in request.items],
        tokenizer_digest=request.tokenizer_digest,
        caller=current_caller().name,
        request_id=request.request_id,
    )
    return reward_pb2.ScoreResponse(
        results=[
            wire.encode_outcome(item.item_id, outcome)
            for item, outcome in zip(request.items, answer.outcomes, strict=True)
        ],
        model_version=answer.model_version,
    )


async def compare(core: RewardCore, request: reward_pb2.CompareRequest) -> reward_pb2.CompareResponse:
    """Says for each pair how probable it is that people prefer the first (Bradley and Terry)."""
    answer = await core.compare(
        [wire.decode_pair(item) for item in request.items],
        tokenizer_digest=request.tokenizer_digest,
        caller=current_caller().name,
        request_id=request.request_id,
    )
    return reward_pb2.CompareResponse(
        results=[
            wire.encode_comparison(item.item_id, outcome)
            for item, outcome in zip(request.items, answer.outcomes, strict=True)
        ],
        model_version=answer.model_version,
    )


async def get_model(
    core: RewardCore, request: reward_pb2.RewardServiceGetModelRequest
) -> reward_pb2.RewardServiceGetModelResponse:
    """Says which model gives the rewards, and how much one call may send."""
    info = core.info
    return reward_pb2.RewardServiceGetModelResponse(
        model_name=info.name,
        model_version=info.version,
        tokenizer_digest=info.tokenizer_digest,
        max_sequence_tokens=info.max_sequence_tokens,
        max_items=core.limits.max_items,
        max_text_characters=core.limits.max_text_characters,
        logit_scale=info.logit_scale,
    )


async def load_model(core: RewardCore, request: reward_pb2.LoadModelRequest) -> reward_pb2.LoadModelResponse:
    """Loads a model beside the present one, tries it, and swaps the two; whatever fails, the present one stays."""
    loaded = await core.load_model(list(request.model_paths), request.component)
    return reward_pb2.LoadModelResponse(
        model_version=loaded.model_version,
        previous_model_version=loaded.previous_model_version,
        load_seconds=loaded.load_seconds,
    )


async def get_report(core: RewardCore, request: reward_pb2.GetReportRequest) -> reward_pb2.GetReportResponse:
    """Says how rewards have developed, by model version and caller: signs of reward hacking."""
    # In a thread: it works through the windows of every caller.
    reports = await asyncio.to_thread(core.report)
    return reward_pb2.GetReportResponse(reports=[wire.encode_report(report) for report in reports])


@asynccontextmanager
async def _until_deadline(context: Context) -> AsyncIterator[None]:
    """Ends the block when the call's deadline has passed, and never begins it after that."""
    seconds = context.time_remaining()
    try:
        async with asyncio.timeout(seconds):
            if seconds is not None and seconds <= 0:
                raise TimeoutError
            yield
    except TimeoutError:
        raise DeadlineExceededError("the call's deadline has passed; give it more time, or send fewer items") from None
