"""Client of the policy service."""

from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Sequence
from dataclasses import dataclass

import grpc

from rlhf.client import codec
from rlhf.client.base import ServiceClient
from rlhf.client.push_messages import push_messages, relayed_messages, send_push
from rlhf.client.rpc_errors import from_rpc_error
from rlhf.rollout import Prompt, Rollout, Sampling
from rlhf.v1 import policy_pb2, policy_pb2_grpc
from rlhf.weights import PushHeader, PushResult


@dataclass(frozen=True, slots=True)
class PolicyModel:
    """What a policy service serves; the fields are those of PolicyServiceGetModelResponse."""

    model_name: str
    tokenizer_digest: str
    policy_version: int
    weights_digest: str
    engine: str
    dtype: str
    max_sequence_tokens: int
    vocab_size: int
    stop_ids: tuple[int, ...]
    max_prompts: int
    max_chunk_bytes: int
    takes_patches: bool = False
    max_sequences: int = 1


class PolicyClient(ServiceClient):
    """Samples from the policy, and pushes weights to it."""

    service = "policy service"
    full_name = "rlhf.v1.PolicyService"
    retried_methods = ("GetModel",)

    def __init__(
        self, target: str, *, token: str | None = None, caller: str = "", retries_generate: bool = False
    ) -> None:
        """Opens a channel; nothing is connected before the first call.

        Args:
            target, token, caller: as for ServiceClient.
            retries_generate: whether generate(), too, is tried again while the service is UNAVAILABLE.
        """
        super().__init__(target, token=token, caller=caller, also_retried=("Generate",) if retries_generate else ())
        self._stub = policy_pb2_grpc.PolicyServiceStub(self._channel)
        # The stub's own method, but for messages that are bytes already.
        self._update_weights: grpc.aio.StreamUnaryMultiCallable[bytes, policy_pb2.UpdateWeightsResponse] = (
            self._channel.stream_unary(
                f"/{self.full_name}/UpdateWeights",
                response_deserializer=policy_pb2.UpdateWeightsResponse.FromString,
            )
        )

    async def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        min_policy_version: int = 0,
        tokenizer_digest: str = "",
        deadline_seconds: float = 600.0,
    ) -> AsyncGenerator[Rollout, None]:
        """Yields each rollout as it finishes, in no particular order; leaving the loop cancels the rest.

        Raises: ServiceError, a SilentError if the deadline passes; rollouts that were yielded before are good.
            PreconditionError means that the service's weights are older than min_policy_version: push, then ask again.
        """
        request = policy_pb2.GenerateRequest(
            prompts=[codec.encode_prompt(prompt) for prompt in prompts],
            sampling=codec.encode_sampling(sampling),
            min_policy_version=min_policy_version,
            tokenizer_digest=tokenizer_digest,
        )
        call = self._stub.Generate(request, timeout=deadline_seconds)
        try:
            async for response in call:
                yield codec.decode_rollout(response.rollout)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self.service, self.target) from None
        finally:
            call.cancel()

    async def update_weights(
        self,
        header: PushHeader,
        payload: Iterable[bytes | memoryview] | AsyncIterable[bytes],
        *,
        deadline_seconds: float = 600.0,
    ) -> PushResult:
        """Pushes weights and returns when they are served.

        Args:
            header: what is pushed.
            payload: the raw little-endian bytes of each tensor, or of a patch its frames, in the manifest's order. They
                may be cut in any way: what is sent are chunks of one size, or the pieces of an AsyncIterable as they
                are. The end of it is the commit.
        Raises: ServiceError; the service's weights are then unchanged. PreconditionError means that a patch does not
            apply to them: push all weights.
        """
        call = self._update_weights(timeout=deadline_seconds)
        try:
            if isinstance(payload, AsyncIterable):
                answer = await self._call(send_push(call, relayed_messages(header, payload)))
            else:
                answer = await self._call(send_push(call, push_messages(header, payload)))
        finally:
            call.cancel()
        if answer is not None:
            return codec.decode_push_result(answer)
        # It served these weights already, and said so before it had read everything.
        model = await self.get_model()
        return PushResult(policy_version=model.policy_version, weights_digest=model.weights_digest, pause_seconds=0.0)

    async def get_model(self, deadline_seconds: float = 10.0, *, wait_for_ready: bool = False) -> PolicyModel:
        """Returns what is being served. Args: wait_for_ready: whether to wait for a service that cannot be reached."""
        request = policy_pb2.PolicyServiceGetModelRequest()
        call = self._stub.GetModel(request, timeout=deadline_seconds, wait_for_ready=wait_for_ready)
        response = await self._call(call)
        return codec.from_message(
            PolicyModel,
            response,
            takes_patches=policy_pb2.WEIGHTS_ENCODING_SPARSE_PATCH in response.encodings,
            max_sequences=response.max_sequences or 1,
        )
