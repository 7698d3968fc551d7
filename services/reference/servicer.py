"""The reference service's rpcs: decode, ask the core, encode."""

from typing import Any

import grpc

from rlhf.serving.calls import current_caller
from rlhf.v1 import reference_pb2, reference_pb2_grpc
from services.reference.core import LogprobsItem, ReferenceCore

Context = grpc.aio.ServicerContext[Any, Any]


class ReferenceServicer(reference_pb2_grpc.ReferenceServiceServicer):
    """Implements rlhf.v1.ReferenceService."""

    def __init__(self, core: ReferenceCore) -> None:
        self._core = core

    async def ComputeLogprobs(
        self, request: reference_pb2.ComputeLogprobsRequest, context: Context
    ) -> reference_pb2.ComputeLogprobsResponse:
        """Computes a batch; results come back in request order."""
        logprobs = await self._core.compute_logprobs(
            [LogprobsItem(list(item.prompt_ids), list(item.completion_ids)) for item in request.items],
            request.temperature if request.HasField("temperature") else 1.0,
            request.tokenizer_digest,
            current_caller().name,
        )
        return reference_pb2.ComputeLogprobsResponse(
            results=[
                reference_pb2.ComputeLogprobsResult(item_id=item.item_id, logprobs=row)
                for item, row in zip(request.items, logprobs, strict=True)
            ],
            reference_version=self._core.info.version,
        )

    async def GetModel(
        self, request: reference_pb2.ReferenceServiceGetModelRequest, context: Context
    ) -> reference_pb2.ReferenceServiceGetModelResponse:
        """Says what is being served."""
        info = self._core.info
        return reference_pb2.ReferenceServiceGetModelResponse(
            model_name=info.name,
            reference_version=info.version,
            tokenizer_digest=info.tokenizer_digest,
            max_sequence_tokens=info.max_sequence_tokens,
            max_items=self._core.limits.max_items,
        )
