"""slime's remote reward model: POST /rm, the address of --rm-url."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from rlhf.serving.http.calls import GuardedRoute
from rlhf.serving.http.errors import ERRORS
from services.reward.core import RewardCore
from services.reward.dialects.rewards import WireMessages, rewards_of
from services.reward.scorers.scorer import ChatMessage, Conversation, Item, RawPair, TextPair


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
