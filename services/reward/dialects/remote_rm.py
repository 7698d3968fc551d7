"""The remote reward models of other trainers: OpenRLHF's POST /get_reward (the address of --reward.remote_url), and
slime's POST /rm (that of --rm-url)."""

from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast

from rlhf.errors import InvalidRequestError
from rlhf.serving.http.calls import GuardedRoute
from rlhf.serving.http.errors import ERRORS
from services.reward.core import RewardCore
from services.reward.dialects.rewards import WireMessages, rewards_of
from services.reward.scorers.scorer import ChatMessage, Conversation, Item, RawPair, Score, TextPair


def _none_is_empty(value: object) -> object:
    return [] if value is None else value


class GetRewardBody(BaseModel):
    """What OpenRLHF sends. Fields that it may add later are not read."""

    model_config = ConfigDict(
        strict=True,
        use_attribute_docstrings=True,
        json_schema_extra={
            "examples": [
                {
                    "query": ["<|user|>\nHow are you?</s>\n<|assistant|>\nFine, thank you.</s>"],
                    "prompts": ["<|user|>\nHow are you?</s>\n<|assistant|>\n"],
                    "labels": [None],
                }
            ]
        },
    )

    query: Annotated[list[str], FailFast()]
    """Prompts with their completions as they stand in the model's context, special tokens written out. May be empty."""
    prompts: Annotated[list[str | None], FailFast(), BeforeValidator(_none_is_empty)] = []
    """The prompts alone. Where a query begins with its prompt, the rest is the completion; else all of it is."""
    labels: Any = None
    """Not read."""


class GetRewardAnswer(BaseModel):
    """One reward for each query, in order."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    rewards: list[float]
    scores: list[float]
    """The rewards once more: what OpenRLHF filters by."""
    extra_logs: dict[str, list[float]]
    """What the reward of each query is made of: a weighted sum's parts by name, and the spread of an ensemble."""


def openrlhf_routes(core: RewardCore) -> APIRouter:
    """Returns the route that OpenRLHF calls."""
    router = APIRouter(route_class=GuardedRoute, tags=["OpenRLHF"], responses=ERRORS)

    @router.post("/get_reward", name="Score", summary="Rewards for OpenRLHF")
    async def get_reward(body: GetRewardBody) -> GetRewardAnswer:
        """Scores queries. An empty list is answered with an empty list; a query without a reward is an error, 422."""
        prompts = body.prompts or [None] * len(body.query)
        if len(prompts) != len(body.query):
            raise InvalidRequestError(
                f"prompts has {len(prompts)} entries and query has {len(body.query)}; send one of each, or no prompts"
            )
        # Idle shards of OpenRLHF ask for nothing.
        items = [_pair_of(query, prompt or "") for query, prompt in zip(body.query, prompts, strict=True)]
        scores = await rewards_of(core, items, "query") if items else []
        rewards = [score.reward for score in scores]
        return GetRewardAnswer(rewards=rewards, scores=rewards, extra_logs=_logs_of(scores))

    return router


def _pair_of(query: str, prompt: str) -> RawPair:
    return RawPair(prompt, query[len(prompt) :]) if query.startswith(prompt) else RawPair("", query)


def _logs_of(scores: list[Score]) -> dict[str, list[float]]:
    """Returns what all scores have in common beside the reward."""
    logs: dict[str, list[float]] = {}
    spreads = [score.spread for score in scores if score.spread is not None]
    if spreads and len(spreads) == len(scores):
        logs["spread"] = spreads
    for score in scores:
        for part in score.components:
            logs.setdefault(part.name, []).append(part.reward)
    return logs


class SlimeBody(BaseModel):
    """What slime sends of a sample."""

    model_config = ConfigDict(
        strict=True,
        use_attribute_docstrings=True,
        json_schema_extra={
            "examples": [
                {
                    "prompt": [{"role": "user", "content": "How are you?"}],
                    "response": "Fine, thank you.",
                    "label": None,
                }
            ]
        },
    )

    prompt: str | WireMessages
    """Text, or the messages before the answer: then the server applies its chat template."""
    response: str
    """The completion."""
    label: Any = None
    """Not read."""


def slime_routes(core: RewardCore) -> APIRouter:
    """Returns the routes that slime may be pointed at."""
    router = APIRouter(route_class=GuardedRoute, tags=["slime"], responses=ERRORS)

    @router.post("/rm", name="Score", summary="Reward for slime", response_model=float)
    async def rm(body: SlimeBody) -> JSONResponse:
        """Scores one sample; the body of the answer is the number. A prompt that is text has been through the chat
        template already (slime's --apply-chat-template), special tokens and all."""
        return await _reward(core, body, RawPair)

    @router.post("/rm/text", name="Score", summary="Reward for slime, plain prompts", response_model=float)
    async def rm_text(body: SlimeBody) -> JSONResponse:
        """As /rm, for prompts that are what the user said: the server applies its chat template."""
        return await _reward(core, body, TextPair)

    return router


async def _reward(core: RewardCore, body: SlimeBody, pair: type[RawPair | TextPair]) -> JSONResponse:
    item: Item
    if isinstance(body.prompt, str):
        item = pair(body.prompt, body.response)
    else:
        item = Conversation((*body.prompt.chat_messages(), ChatMessage("assistant", body.response)))
    (score,) = await rewards_of(core, [item], "sample")
    return JSONResponse(score.reward)
