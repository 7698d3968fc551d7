"""The gRPC face of the policy service: decode, core, encode."""

import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, TypeAlias

import grpc

from rlhf.client import codec
from rlhf.client.push_messages import ChunkView, parse_push_message
from rlhf.errors import InvalidRequestError
from rlhf.v1 import policy_pb2, policy_pb2_grpc
from services.policy.config import PolicyConfig
from services.policy.engine import Engine
from services.policy.generator import GenerateJob, Generator
from services.policy.metrics import PolicyMetrics
from services.policy.updater import PushChunk, PushCommit, PushPart, WeightUpdater

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class PolicyServicer(policy_pb2_grpc.PolicyServiceServicer):
    """Implements rlhf.v1.PolicyService. Its methods are called only once the engine is loaded."""

    def __init__(self, engine: Engine, weights: WeightUpdater, config: PolicyConfig, metrics: PolicyMetrics) -> None:
        self._engine = engine
        self._weights = weights
        self._config = config
        self._generator = Generator(engine, weights, config.limits, metrics)

    async def Generate(
        self, request: policy_pb2.GenerateRequest, context: Context
    ) -> AsyncIterator[policy_pb2.GenerateResponse]:
        """Streams each rollout as it finishes."""
        async with aclosing(self._generator.generate(_decode_job(request))) as rollouts:
            async for rollout in rollouts:
                yield policy_pb2.GenerateResponse(rollout=codec.encode_rollout(rollout))

    async def UpdateWeights(
        self, request_iterator: AsyncIterator[ChunkView | policy_pb2.UpdateWeightsRequest], context: Context
    ) -> policy_pb2.UpdateWeightsResponse:
        """Takes a weight push."""
        result = await self._weights.push(_decode_parts(request_iterator), context.time_remaining())
        return codec.encode_push_result(result)

    def push_handler(self, full_name: str) -> grpc.GenericRpcHandler:
        """Returns what serves UpdateWeights with chunks that are not copied as they are parsed."""
        return grpc.method_handlers_generic_handler(
            full_name,
            {
                "UpdateWeights": grpc.stream_unary_rpc_method_handler(
                    self.UpdateWeights,
                    request_deserializer=parse_push_message,
                    response_serializer=policy_pb2.UpdateWeightsResponse.SerializeToString,
                )
            },
        )

    async def GetModel(
        self, request: policy_pb2.PolicyServiceGetModelRequest, context: Context
    ) -> policy_pb2.PolicyServiceGetModelResponse:
        """Says what is served, and its limits."""
        info, config = self._engine.info, self._config
        engine = config.vllm if config.model.engine == "vllm" else config.transformers
        patches = [policy_pb2.WEIGHTS_ENCODING_SPARSE_PATCH] if self._weights.takes_patches else []
        return policy_pb2.PolicyServiceGetModelResponse(
            model_name=str(config.model.path),
            tokenizer_digest=info.tokenizer_digest,
            policy_version=self._weights.served.policy_version,
            weights_digest=self._weights.served.digest,
            engine=info.name,
            dtype=info.dtype,
            max_sequence_tokens=info.max_sequence_tokens,
            vocab_size=info.vocab_size,
            stop_ids=info.stop_ids,
            max_prompts=config.limits.max_prompts,
            max_chunk_bytes=config.limits.max_chunk_bytes,
            encodings=[policy_pb2.WEIGHTS_ENCODING_FULL, *patches],
            max_sequences=engine.max_num_seqs,
        )


def _decode_job(request: policy_pb2.GenerateRequest) -> GenerateJob:
    if not request.HasField("sampling"):
        raise InvalidRequestError("sampling is missing; send at least sampling.max_new_tokens")
    sampling = request.sampling
    return GenerateJob(
        request_id=request.request_id or uuid.uuid4().hex,
        prompts=[codec.decode_prompt(prompt) for prompt in request.prompts],
        sampling=codec.decode_sampling(sampling),
        min_policy_version=request.min_policy_version,
        tokenizer_digest=request.tokenizer_digest,
        top_p=sampling.top_p if sampling.HasField("top_p") else None,
        top_k=sampling.top_k if sampling.HasField("top_k") else None,
    )


async def _decode_parts(
    requests: AsyncIterator[ChunkView | policy_pb2.UpdateWeightsRequest],
) -> AsyncIterator[PushPart]:
    async for request in requests:
        if isinstance(request, ChunkView):
            yield PushChunk(request.offset_bytes, request.data)
            continue
        match request.WhichOneof("part"):
            case "header":
                yield codec.decode_header(request.header)
            case "chunk":
                yield PushChunk(request.chunk.offset_bytes, request.chunk.data)
            case "commit":
                yield PushCommit()
            case _:
                raise InvalidRequestError("a message of the push has no part; send a header, a chunk or the commit")
