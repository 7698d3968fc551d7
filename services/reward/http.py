"""The reward service's routes over HTTP: its own JSON, and the wire formats of other systems."""

from fastapi import APIRouter

from services.reward.core import RewardCore
from services.reward.dialects.native import native_routes
from services.reward.dialects.openrlhf import openrlhf_routes
from services.reward.dialects.slime import slime_routes
from services.reward.dialects.vllm import vllm_routes

TITLE = "RLHF reward service"
DESCRIPTION = """
Rewards for completions. `/v1/...` is the service's own JSON; the other routes take what OpenRLHF, slime, verl, vLLM's
and SGLang's clients send, so that they need no code but this address.

A failed score is never a number: `/v1/score` says so for the item alone; the other routes, which have no room for that,
answer 422, or 503 where repeating the call may help.
"""


def reward_routes(core: RewardCore) -> list[APIRouter]:
    """Returns the routes of every dialect."""
    return [routes(core) for routes in (native_routes, openrlhf_routes, slime_routes, vllm_routes)]
