"""The reward service's routes over HTTP: its own JSON, and the wire formats of other systems."""

from functools import partial
from inspect import getdoc
from typing import Any

from fastapi import APIRouter

from rlhf.serving.http.calls import GuardedRoute
from rlhf.serving.http.errors import ERRORS
from rlhf.serving.http.proto_json import add_rpc
from rlhf.v1 import reward_pb2
from services.reward.core import RewardCore
from services.reward.dialects.remote_rm import openrlhf_routes, slime_routes
from services.reward.dialects.vllm import vllm_routes
from services.reward.servicer import RewardServicer

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


_RPCS = reward_pb2.DESCRIPTOR.services_by_name["RewardService"].methods_by_name
_GOOD = {"text": {"prompt": "How are you?", "completion": "Fine, thank you."}}
_BAD = {"text": {"prompt": "How are you?", "completion": "Go away."}}
_IDS = {"tokens": {"prompt_ids": [1, 42, 7, 2], "completion_ids": [9, 9, 1]}}
_SCORE: dict[str, Any] = {"items": [{"item_id": "a", **_GOOD}, {"item_id": "b", **_IDS}]}
_COMPARE: dict[str, Any] = {"items": [{"first": _GOOD, "second": _BAD}]}
_LOAD: dict[str, Any] = {"model_paths": ["/models/reward-2"]}


def native_routes(core: RewardCore) -> APIRouter:
    """Returns the routes below /v1 that are the service's own."""
    router = APIRouter(route_class=GuardedRoute, tags=["native"], responses=ERRORS)
    servicer = RewardServicer(core)
    for method, path, name, summary, example in (
        ("POST", "/v1/score", "Score", "Score completions", _SCORE),
        ("POST", "/v1/compare", "Compare", "Compare completions in pairs", _COMPARE),
        ("GET", "/v1/model", "GetModel", "What is served", None),
        ("GET", "/v1/report", "GetReport", "How rewards develop", None),
        ("POST", "/v1/load_model", "LoadModel", "Serve other weights (scope admin)", _LOAD),
    ):
        rpc = getattr(servicer, name)
        answer = partial(rpc, context=None)
        add_rpc(router, method, path, _RPCS[name], answer, summary=summary, description=getdoc(rpc), example=example)
    return router
