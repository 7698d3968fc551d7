"""Client of the reward service: what any system needs to have completions scored."""

from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_services.clients.base import ServiceClient
from rlhf_services.v1 import reward_pb2, reward_pb2_grpc


@dataclass(frozen=True, slots=True)
class ScoreItem:
    """A completion to score; make it with `text` or `tokens`."""

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


@dataclass(frozen=True, slots=True)
class Reward:
    """The reward of one item."""

    item_id: str
    reward: float
    spread: float | None = None
    """Standard deviation of the rewards of an ensemble's members; None from a single scorer."""


@dataclass(frozen=True, slots=True)
class RewardError:
    """Why one item has no reward."""

    item_id: str
    code: str
    """One of "invalid_item", "too_long", "not_finite"."""
    message: str


@dataclass(frozen=True, slots=True)
class ScoreBatch:
    """The results of a batch, in the order of its items."""

    results: list[Reward | RewardError]
    model_version: str


@dataclass(frozen=True, slots=True)
class RewardModel:
    """What a reward service serves; the fields are those of RewardServiceGetModelResponse."""

    model_name: str
    model_version: str
    tokenizer_digest: str
    max_sequence_tokens: int
    max_items: int


class RewardClient(ServiceClient):
    """Scores completions."""

    service = "reward service"
    full_name = "rlhf_services.v1.RewardService"
    retried_methods = ("Score", "GetModel")

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self._stub = reward_pb2_grpc.RewardServiceStub(self._channel)

    async def score(
        self, items: Sequence[ScoreItem], *, tokenizer_digest: str = "", deadline_seconds: float = 60.0
    ) -> ScoreBatch:
        """Returns a reward or an error for each item. Raises: ServiceError if the batch as a whole was not scored."""
        request = reward_pb2.ScoreRequest(items=[item.message for item in items], tokenizer_digest=tokenizer_digest)
        response = await self._call(self._stub.Score(request, timeout=deadline_seconds))
        return ScoreBatch([_decode_result(result) for result in response.results], response.model_version)

    async def get_model(self, deadline_seconds: float = 10.0) -> RewardModel:
        """Returns what is being served."""
        request = reward_pb2.RewardServiceGetModelRequest()
        response = await self._call(self._stub.GetModel(request, timeout=deadline_seconds))
        return RewardModel(
            model_name=response.model_name,
            model_version=response.model_version,
            tokenizer_digest=response.tokenizer_digest,
            max_sequence_tokens=response.max_sequence_tokens,
            max_items=response.max_items,
        )


def _decode_result(result: reward_pb2.ScoreResult) -> Reward | RewardError:
    if result.WhichOneof("outcome") == "reward":
        spread = result.spread if result.HasField("spread") else None
        return Reward(result.item_id, result.reward, spread)
    # A result without an outcome breaks the contract; it is an error like any other, never a reward of 0.
    code = reward_pb2.ScoreErrorCode.Name(result.error.code).removeprefix("SCORE_ERROR_CODE_").lower()
    return RewardError(result.item_id, code, result.error.message or "the service sent neither reward nor error")
