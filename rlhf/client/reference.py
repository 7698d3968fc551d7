"""Client of the reference service."""

from collections.abc import Sequence
from dataclasses import dataclass

from rlhf.client.base import ServiceClient
from rlhf.client.codec import from_message
from rlhf.v1 import reference_pb2, reference_pb2_grpc


@dataclass(frozen=True, slots=True)
class LogprobsItem:
    """A completion whose log-probabilities are wanted."""

    prompt_ids: Sequence[int]
    completion_ids: Sequence[int]
    item_id: str = ""


@dataclass(frozen=True, slots=True)
class LogprobsBatch:
    """The log-probabilities of a batch, in nats, in the order of its items; one value a completion token."""

    logprobs: list[list[float]]
    reference_version: str


@dataclass(frozen=True, slots=True)
class ReferenceModel:
    """What a reference service serves; the fields are those of ReferenceServiceGetModelResponse."""

    model_name: str
    reference_version: str
    tokenizer_digest: str
    max_sequence_tokens: int
    max_items: int


class ReferenceClient(ServiceClient):
    """Computes log-probabilities under the frozen reference policy."""

    service = "reference service"
    full_name = "rlhf.v1.ReferenceService"
    retried_methods = ("ComputeLogprobs", "GetModel")

    def __init__(self, target: str, *, token: str | None = None, caller: str = "") -> None:
        """Opens a channel; nothing is connected before the first call. The arguments are those of ServiceClient."""
        super().__init__(target, token=token, caller=caller)
        self._stub = reference_pb2_grpc.ReferenceServiceStub(self._channel)

    async def compute_logprobs(
        self,
        items: Sequence[LogprobsItem],
        *,
        temperature: float = 1.0,
        tokenizer_digest: str = "",
        deadline_seconds: float = 60.0,
    ) -> LogprobsBatch:
        """Returns log-probabilities for each item, the logits divided by `temperature`. Raises: ServiceError."""
        request = reference_pb2.ComputeLogprobsRequest(
            items=[
                reference_pb2.ComputeLogprobsItem(
                    item_id=item.item_id, prompt_ids=item.prompt_ids, completion_ids=item.completion_ids
                )
                for item in items
            ],
            temperature=temperature,
            tokenizer_digest=tokenizer_digest,
        )
        response = await self._call(self._stub.ComputeLogprobs(request, timeout=deadline_seconds))
        return LogprobsBatch([list(result.logprobs) for result in response.results], response.reference_version)

    async def get_model(self, deadline_seconds: float = 10.0) -> ReferenceModel:
        """Returns what is being served."""
        request = reference_pb2.ReferenceServiceGetModelRequest()
        return from_message(ReferenceModel, await self._call(self._stub.GetModel(request, timeout=deadline_seconds)))
