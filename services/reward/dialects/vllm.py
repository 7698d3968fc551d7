"""The pooling routes of vLLM and SGLang, as verl and others call them: /classify and /v1/embeddings."""

import base64
import struct
import time
import uuid
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, model_validator

from rlhf.serving.http.calls import GuardedRoute
from rlhf.serving.http.errors import ERRORS
from rlhf.serving.http.proto_json import INT32_MAX
from services.reward.core import RewardCore
from services.reward.dialects.rewards import WireMessages, rewards_of
from services.reward.scorers.scorer import Conversation, Item, RawPair, TokenSequence

LABEL = "LABEL_0"
"""What transformers calls the only label of a reward model."""


def _inputs_of(value: object) -> list[str] | list[list[int]]:
    """Returns what is to be scored, one entry each: of a text or a list of them, of ids or a list of lists of them."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(each, str) for each in value):
            return value
        if _are_ids(value):
            return [value]
        if all(isinstance(each, list) and _are_ids(each) for each in value):
            return value
    raise ValueError("send a text, a list of texts, a list of token ids, or a list of such lists; not empty")


def _are_ids(values: list[Any]) -> bool:
    # Not isinstance: JSON's true is an int in Python.
    return all(type(each) is int and abs(each) <= INT32_MAX for each in values)


Input = Annotated[
    Any,
    AfterValidator(_inputs_of),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string"},
                {"type": "array", "items": {"type": "string"}},
                {"type": "array", "items": {"type": "integer"}},
                {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}},
            ]
        }
    ),
]


class PoolingBody(BaseModel):
    """What is to be scored. Fields of vLLM that are not named here are not read."""

    model_config = ConfigDict(
        strict=True,
        use_attribute_docstrings=True,
        json_schema_extra={"examples": [{"model": "reward", "input": "<|user|>\nHow are you?</s>\n"}]},
    )

    model: str | None = None
    """Not read: there is one model."""
    input: Input = None
    """Text with special tokens written out, one or more; or token ids."""
    messages: WireMessages | None = None
    """Instead of input: a conversation, the last message being the assistant's."""
    add_special_tokens: bool = True
    """Whether the tokenizer adds to an input that is text what it adds to any text, such as a token of beginning."""
    use_activation: bool | None = None
    """The reward is never squashed, whatever a model's default is; true is refused."""
    activation: bool | None = None
    """The former name of use_activation."""
    truncate_prompt_tokens: int | None = None
    """Nothing is ever cut; a number is refused."""

    @model_validator(mode="after")
    def _require_what_can_be_done(self) -> Self:
        if (self.input is None) == (self.messages is None):
            raise ValueError("send input or messages, one of the two")
        if self.use_activation or self.activation:
            raise ValueError("use_activation is true: rewards are not squashed here; send false")
        if self.truncate_prompt_tokens is not None:
            raise ValueError("truncate_prompt_tokens is set: nothing is cut here; leave it out and send less")
        return self

    def to_items(self) -> list[Item]:
        """Returns what a scorer is asked."""
        if self.messages is not None:
            return [Conversation(self.messages.chat_messages())]
        return [
            RawPair("", each, self.add_special_tokens) if isinstance(each, str) else TokenSequence(each)
            for each in self.input
        ]


class EmbeddingsBody(PoolingBody):
    """As PoolingBody, with the form in which the reward comes back."""

    encoding_format: Literal["float", "base64"] = "float"
    """base64: of the reward as a little-endian float32."""


class Usage(BaseModel):
    """How much was read. Counted for input that came as token ids; 0 for text."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int = 0
    prompt_tokens_details: None = None


class Classified(BaseModel):
    """The reward, as the probabilities of a classifier with one class. It is no probability."""

    index: int
    label: str = LABEL
    probs: list[float] = Field(examples=[[0.75]])
    num_classes: int = 1


class ClassifyAnswer(BaseModel):
    """One entry for each input, in order: data[i].probs[-1] is the reward."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Classified]
    usage: Usage


class Embedded(BaseModel):
    """The reward, as an embedding of one dimension."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str = Field(examples=[[0.75]])


class EmbeddingsAnswer(BaseModel):
    """One entry for each input, in order: data[i].embedding[-1] is the reward."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[Embedded]
    usage: Usage


def vllm_routes(core: RewardCore) -> APIRouter:
    """Returns the routes of vLLM's and SGLang's servers that give rewards."""
    router = APIRouter(route_class=GuardedRoute, tags=["vLLM, SGLang, verl"], responses=ERRORS)

    @router.post("/classify", name="Score", summary="Rewards as vLLM's classes")
    async def classify(body: PoolingBody) -> ClassifyAnswer:
        """Scores texts or token ids; an input without a reward is an error, 422 (503 where repeating may help)."""
        items = body.to_items()
        rewards = await _rewards(core, items)
        data = [Classified(index=index, probs=[reward]) for index, reward in enumerate(rewards)]
        return ClassifyAnswer(**_frame(core, "classify", items), data=data)

    @router.post("/v1/classify", name="Score", summary="Rewards as SGLang's classes")
    async def classify_v1(body: PoolingBody) -> ClassifyAnswer:
        """As /classify."""
        return await classify(body)

    @router.post("/v1/embeddings", name="Score", summary="Rewards as SGLang's embeddings")
    async def embeddings(body: EmbeddingsBody) -> EmbeddingsAnswer:
        """As /classify, in the shape in which SGLang serves reward models."""
        items = body.to_items()
        rewards = await _rewards(core, items)
        data = [
            Embedded(index=index, embedding=_base64(reward) if body.encoding_format == "base64" else [reward])
            for index, reward in enumerate(rewards)
        ]
        return EmbeddingsAnswer(**_frame(core, "embd", items), data=data)

    return router


async def _rewards(core: RewardCore, items: list[Item]) -> list[float]:
    return [score.reward for score in await rewards_of(core, items, "input")]


def _frame(core: RewardCore, prefix: str, items: list[Item]) -> dict[str, Any]:
    num_tokens = sum(len(item.ids) for item in items if isinstance(item, TokenSequence))
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "created": int(time.time()),
        "model": core.info.name,
        "usage": Usage(prompt_tokens=num_tokens, total_tokens=num_tokens),
    }


def _base64(reward: float) -> str:
    return base64.b64encode(struct.pack("<f", reward)).decode()
