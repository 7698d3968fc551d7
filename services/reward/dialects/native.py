"""The service's own routes: what rlhf.v1.RewardService offers, in the JSON of its proto."""

from functools import partial
from inspect import getdoc
from typing import Any

from fastapi import APIRouter

from rlhf.serving.http.calls import GuardedRoute
from rlhf.serving.http.errors import ERRORS
from rlhf.serving.http.proto_json import add_rpc
from rlhf.v1 import reward_pb2
from services.reward import servicer
from services.reward.core import RewardCore

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
    for method, path, name, answer, summary, example in (
        ("POST", "/v1/score", "Score", servicer.score, "Score completions", _SCORE),
        ("POST", "/v1/compare", "Compare", servicer.compare, "Compare completions in pairs", _COMPARE),
        ("GET", "/v1/model", "GetModel", servicer.get_model, "What is served", None),
        ("GET", "/v1/report", "GetReport", servicer.get_report, "How rewards develop", None),
        ("POST", "/v1/load_model", "LoadModel", servicer.load_model, "Serve other weights (scope admin)", _LOAD),
    ):
        add_rpc(
            router,
            method,
            path,
            _RPCS[name],
            partial(answer, core),
            summary=summary,
            description=getdoc(answer),
            example=example,
        )
    return router
