"""NeMo-Aligner's reward server: the model "reward_model" as Triton would serve it over HTTP (KServe protocol 2)."""

import json
from functools import partial
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, PrivateAttr
from starlette.requests import Request
from starlette.responses import Response

from rlhf.errors import InvalidRequestError, NotFoundError
from rlhf.serving.http.bodies import BodyReader, decoded, parse_json
from rlhf.serving.http.calls import Guard, GuardedRoute
from rlhf.serving.http.errors import error_body, error_response
from services.reward.core import RewardCore
from services.reward.dialects.rewards import rewards_of
from services.reward.dialects.tensors import InferBody, Tensor, float_output, json_size_of, tensors_of
from services.reward.scorers.scorer import Item, RawPair, TokenSequence

MODEL = "reward_model"
"""The name that NeMo-Aligner's clients ask for."""
VERSION = "1"
"""Triton's versions are numbers; which weights are served is said by /v1/model."""
JSON_SIZE_KEY = "inference-header-content-length"
ERRORS: dict[int | str, dict[str, Any]] = {400: {"description": 'The request is wrong: {"error": message}.'}}


class InferRequest(InferBody):
    """A request to score, its tensors decoded."""

    _tensors: dict[str, Tensor] = PrivateAttr(default_factory=dict)


class TritonRoute(GuardedRoute):
    """A route whose body may have binary tensors behind its JSON, and whose errors are as Triton's."""

    plain_errors = True

    async def body_of(self, request: Request, model: type[BaseModel], reader: BodyReader) -> BaseModel:
        """Returns the body with its tensors. Raises: InvalidRequestError; OverloadedError; CallerLeftError."""
        body = await reader.read(request)
        size = json_size_of(request.headers.get(JSON_SIZE_KEY), body)
        return await decoded(partial(_decode, size), body)


def triton_routes(core: RewardCore) -> APIRouter:
    """Returns the routes below /v2."""
    router = APIRouter(route_class=TritonRoute, tags=["Triton, NeMo-Aligner"], responses=ERRORS)

    @router.post("/v2/models/{model}/infer", name="Score", summary="Rewards for Triton's clients")
    @router.post("/v2/models/{model}/versions/{version}/infer", name="Score", include_in_schema=False)
    async def infer(body: InferRequest, model: str, version: str = VERSION) -> Response:
        """Scores a batch: `sentences` BYTES [B, 1], or `tokens` INT64 [B, S], padded on the right, with
        `sequence_lengths` INT64 [B, 1]. Answers `rewards` FP32 [B, 1]. Tensors in JSON or binary."""
        _require_known(model, version)
        _require_known_outputs(body)
        items = _items_of(body._tensors, core.limits.max_items)
        rewards = [score.reward for score in await rewards_of(core, items, "item")] if items else []
        return _answer(body, rewards)

    _add_facts(router, core)
    return router


def _add_facts(router: APIRouter, core: RewardCore) -> None:
    """Adds what clients ask before they infer."""

    @router.get("/v2", name="GetModel", summary="About the server")
    async def server() -> JSONResponse:
        """Names the protocol's extensions that are spoken."""
        return JSONResponse({"name": "rlhf-reward", "version": VERSION, "extensions": ["binary_tensor_data"]})

    @router.get("/v2/models/{model}", name="GetModel", summary="The model's tensors")
    @router.get("/v2/models/{model}/versions/{version}", name="GetModel", include_in_schema=False)
    async def metadata(model: str, version: str = VERSION) -> JSONResponse:
        """Says what goes in and what comes out."""
        _require_known(model, version)
        inputs = [{"name": name, "datatype": kind, "shape": [-1, -1]} for name, kind in _INPUTS.items()]
        outputs = [{"name": "rewards", "datatype": "FP32", "shape": [-1, 1]}]
        facts = {"name": MODEL, "versions": [VERSION], "platform": "rlhf-reward", "inputs": inputs, "outputs": outputs}
        return JSONResponse(facts)

    @router.get("/v2/models/{model}/config", name="GetModel", summary="The model's configuration")
    @router.get("/v2/models/{model}/versions/{version}/config", name="GetModel", include_in_schema=False)
    async def config(model: str, version: str = VERSION) -> JSONResponse:
        """As metadata, in the form that pytriton's clients read."""
        _require_known(model, version)
        return JSONResponse(_config(core.limits.max_items))

    @router.post("/v2/repository/index", name="GetModel", summary="The models that are served")
    async def index() -> JSONResponse:
        """Lists the one model; it is ready, or this call would have been refused."""
        return JSONResponse([{"name": MODEL, "version": VERSION, "state": "READY"}])


def add_triton_health(router: APIRouter, guard: Guard) -> None:
    """Adds the routes of health, which nobody needs a token for."""

    @router.get("/v2/health/live", tags=["health"], summary="Whether the process serves")
    async def live() -> Response:
        """Answers 200 as long as it answers."""
        return Response()

    @router.get("/v2/health/ready", tags=["health"], summary="Whether calls are served")
    async def ready() -> Response:
        """Answers 200, or 503 and why."""
        reason = guard.why_not_ready()
        return Response() if reason is None else error_body(503, "unavailable", reason, plain=True)

    @router.get("/v2/models/{model}/ready", tags=["health"], summary="Whether the model serves")
    @router.get("/v2/models/{model}/versions/{version}/ready", include_in_schema=False)
    async def model_ready(model: str, version: str = VERSION) -> Response:
        """As /v2/health/ready."""
        try:
            _require_known(model, version)
        except NotFoundError as error:
            return error_response(error, plain=True)
        return await ready()


_INPUTS = {"sentences": "BYTES", "tokens": "INT64", "sequence_lengths": "INT64"}


def _config(max_items: int) -> dict[str, Any]:
    kinds = {"BYTES": "TYPE_STRING", "INT64": "TYPE_INT64"}
    inputs = [
        {"name": name, "data_type": kinds[kind], "dims": [-1], "optional": True} for name, kind in _INPUTS.items()
    ]
    outputs = [{"name": "rewards", "data_type": "TYPE_FP32", "dims": [1]}]
    return {
        "name": MODEL,
        "platform": "",
        "backend": "rlhf-reward",
        "max_batch_size": max_items,
        "input": inputs,
        "output": outputs,
        "instance_group": [],
        "parameters": {},
        "model_transaction_policy": {"decoupled": False},
    }


def _require_known(model: str, version: str) -> None:
    if model != MODEL or version != VERSION:
        raise NotFoundError(f"no model '{model[:64]}', version '{version[:64]}'; ask for '{MODEL}', version {VERSION}")


def _require_known_outputs(body: InferRequest) -> None:
    for output in body.outputs:
        if output.name != "rewards":
            raise InvalidRequestError(f"output '{output.name[:64]}' is not known; ask for 'rewards'")


def _decode(json_size: int, body: bytes) -> InferRequest:
    request = parse_json(InferRequest, body[:json_size])
    request._tensors = tensors_of(request, body[json_size:])
    return request


def _items_of(tensors: dict[str, Tensor], max_items: int) -> list[Item]:
    """Returns what a scorer is asked. Raises: InvalidRequestError."""
    unknown = sorted(set(tensors) - set(_INPUTS))
    if unknown:
        raise InvalidRequestError(f"input '{unknown[0][:64]}' is not known; send {', '.join(_INPUTS)}")
    for name, tensor in tensors.items():
        if isinstance(tensor.elements, list) != (_INPUTS[name] == "BYTES"):
            raise InvalidRequestError(f"input '{name}' has the wrong datatype; send {_INPUTS[name]}")
    if ("sentences" in tensors) == ("tokens" in tensors):
        raise InvalidRequestError("send either sentences, or tokens with sequence_lengths")
    if "sentences" in tensors:
        return [RawPair("", text) for text in _column(tensors, "sentences")]
    tokens = tensors["tokens"]
    if len(tokens.shape) != 2:
        raise InvalidRequestError(f"input 'tokens' has the shape {list(tokens.shape)}; send [B, S]")
    num_items, width = tokens.shape
    if num_items > max_items:
        # Before there is an object for each: rows of no tokens cost the caller nothing.
        raise InvalidRequestError(f"input 'tokens' has {num_items} rows, the limit is {max_items}; split the batch")
    lengths = _column(tensors, "sequence_lengths")
    if len(lengths) != num_items or not all(0 <= length <= width for length in lengths):
        raise InvalidRequestError(
            f"input 'sequence_lengths' must have {num_items} numbers from 0 to {width}, as 'tokens' has the shape "
            f"{list(tokens.shape)}"
        )
    assert not isinstance(tokens.elements, list)  # by its datatype
    rows = tokens.elements.reshape(num_items, width)
    return [TokenSequence(row[:length].tolist()) for row, length in zip(rows, lengths, strict=True)]


def _column(tensors: dict[str, Tensor], name: str) -> list[Any]:
    """Returns the elements of a tensor of shape [B, 1] or [B]. Raises: InvalidRequestError."""
    if name not in tensors:
        raise InvalidRequestError(f"input '{name}' is missing; send it with 'tokens'")
    tensor = tensors[name]
    if len(tensor.shape) > 2 or tensor.shape[1:] not in ((), (1,)):
        raise InvalidRequestError(f"input '{name}' has the shape {list(tensor.shape)}; send [B, 1]")
    return tensor.elements if isinstance(tensor.elements, list) else list(tensor.elements.tolist())


def _answer(body: InferRequest, rewards: list[float]) -> Response:
    """Returns the response, its tensor in the form that was asked for."""
    binary = body.parameters.binary_data_output or any(each.parameters.binary_data for each in body.outputs)
    output_json, raw = float_output("rewards", rewards, binary=binary)
    answer = {"id": body.id, "model_name": MODEL, "model_version": VERSION, "outputs": [output_json]}
    head = json.dumps(answer).encode()
    if not binary:
        return Response(head, media_type="application/json")
    return Response(head + raw, media_type="application/octet-stream", headers={JSON_SIZE_KEY: str(len(head))})
