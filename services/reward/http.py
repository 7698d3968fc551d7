"""The gateway's routes as one ASGI application, with its documentation."""

from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from rlhf.serving.http.calls import GATEWAY_KEY, Gateway, Guard
from rlhf.serving.http.errors import error_body
from services.reward.core import RewardCore
from services.reward.dialects.native import native_routes
from services.reward.dialects.openrlhf import openrlhf_routes
from services.reward.dialects.slime import slime_routes
from services.reward.dialects.vllm import vllm_routes

DESCRIPTION = """
Rewards for completions. `/v1/...` is the service's own JSON; the other routes take what OpenRLHF, slime, verl, vLLM's
and SGLang's clients send, so that they need no code but this address.

An error is `{"error": {"code", "message"}}`. A failed score is never a number: `/v1/score` says so for the item alone;
the other routes, which have no room for that, answer 422, or 503 where repeating the call may help.

Headers that every call may have: `authorization: Bearer TOKEN`; `x-rlhf-caller`, a name for metrics where there is no
token; `x-request-id`, for the service's logs, and echoed; `x-request-timeout-seconds`, after which the work is dropped.
A call whose connection is closed is dropped too.
"""


def make_app(core: RewardCore, guard: Guard, max_body_bytes: int) -> FastAPI:
    """Returns the application. Args: what scores; what surrounds every call; the largest body that is read."""
    app = FastAPI(title="RLHF reward service", version="v1", description=DESCRIPTION, redoc_url=None)
    setattr(app.state, GATEWAY_KEY, Gateway(guard, max_body_bytes))
    for routes in (native_routes, openrlhf_routes, slime_routes, vllm_routes):
        app.include_router(routes(core))
    app.include_router(_health_routes(guard))
    app.add_exception_handler(HTTPException, _no_route)
    return app


def _health_routes(guard: Guard) -> APIRouter:
    """Returns the routes of health: no token, no metrics, no model's thread."""
    router = APIRouter()

    @router.get("/health", tags=["health"], summary="Whether the process serves")
    async def health() -> dict[str, str]:
        """Answers 200 as long as it answers; see /ready for whether calls are served."""
        return {"status": "live"}

    @router.get("/ready", tags=["health"], summary="Whether calls are served")
    async def ready() -> Response:
        """Answers 200, or 503 and why: loading, stuck, or ending."""
        reason = guard.why_not_ready()
        if reason is None:
            return JSONResponse({"status": "ready"})
        return error_body(503, "unavailable", reason, {"retry-after": "1"})

    return router


async def _no_route(request: Request, error: Exception) -> Response:
    """Answers what has no route, in the shape of every other error."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 405:
        message = f"{path} is not for {request.method}; see /docs"
        return error_body(405, "method_not_allowed", message, error.headers)
    return error_body(error.status_code, "not_found", f"no route {path[:128]}; see /docs")
