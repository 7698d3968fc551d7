"""A call over HTTP from end to end: guarded, within its deadline, and only for as long as its caller stays."""

import asyncio
import inspect
import math
import re
import reprlib
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

import structlog
from fastapi.routing import APIRoute
from google.protobuf.message import Message
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from rlhf.client.channel import CALLER_KEY
from rlhf.client.tasks import first_of
from rlhf.client.tracing import continued
from rlhf.errors import DeadlineExceededError, InvalidRequestError, ServiceError
from rlhf.serving.calls import CallCredentials, CallGuard, ServedCall
from rlhf.serving.http.bodies import BodyRoom, CallerLeftError, decoded, parse_json, require_json
from rlhf.serving.http.errors import error_response
from rlhf.serving.http.proto_json import json_of

REQUEST_ID_KEY = "x-request-id"
TIMEOUT_KEY = "x-request-timeout-seconds"
CERTIFICATE_NAMES_KEY = "rlhf.certificate_names"
"""In an ASGI scope: the names in the client's certificate."""
ANSWERER_KEY = "answerer"
"""In an application's state: its Answerer."""
CLIENT_CLOSED_REQUEST = 499
"""What is noted where nobody is left to be answered; nginx's number for it."""

T = TypeVar("T")


class Answerer:
    """Answers calls over HTTP."""

    def __init__(self, guard: CallGuard, max_body_bytes: int) -> None:
        self.guard = guard
        self.room = BodyRoom(max_body_bytes)

    async def answer(
        self, request: Request, method: str, work: Callable[[ServedCall], Awaitable[Response]]
    ) -> Response:
        """Returns the response to a call, or to its error.

        Args:
            request: the request; its body is not read yet.
            method: the rpc that it stands for: its scope, and its name in metrics.
            work: makes the response.
        """
        request_id = re.sub(r"[^\x21-\x7e]", "", request.headers.get(REQUEST_ID_KEY, ""))[:128]
        try:
            with continued(request.headers):
                async with self.guard.around(method, _credentials_of(request), request_id) as call:
                    request_id = call.request_id
                    response = await self._in_time(request, call, work)
        except ServiceError as error:
            response = error_response(error)
        except CallerLeftError:
            response = Response(status_code=CLIENT_CLOSED_REQUEST)
        if request_id:
            response.headers[REQUEST_ID_KEY] = request_id
        return response

    async def _in_time(
        self, request: Request, call: ServedCall, work: Callable[[ServedCall], Awaitable[Response]]
    ) -> Response:
        seconds = _timeout_of(request)
        try:
            async with asyncio.timeout(seconds) as deadline:
                return await work(call)
        except TimeoutError:
            if not deadline.expired():
                raise
            late = f"not done within {TIMEOUT_KEY} = {seconds:g}; allow more, or send fewer items"
            raise DeadlineExceededError(late) from None


class GuardedRoute(APIRoute):
    """A route whose name is the rpc it stands for; its function takes a `body`, a model, and the parts of its path.

    A model with a class method `decode` gets the body's bytes there, and what that returns is given to the function.

    FastAPI documents the function's types; what it would do at run time (read the whole body, decode it in the event
    loop, answer 422 in a shape of its own) is done by Answerer instead.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Returns what answers a request to this route."""
        parameters = inspect.signature(self.endpoint).parameters
        model: Any = parameters["body"].annotation if "body" in parameters else None
        decode = getattr(model, "decode", None) or partial(parse_json, model)

        async def handle(request: Request) -> Response:
            answerer: Answerer = getattr(request.app.state, ANSWERER_KEY)

            async def work(call: ServedCall) -> Response:
                arguments = {name: part for name, part in request.path_params.items() if name in parameters}
                with answerer.room.reader() as reader:
                    if model is not None:
                        require_json(request)
                        arguments["body"] = await decoded(decode, await reader.read(request))
                        _name(call, arguments["body"])
                    return _response_of(await while_connected(request, self.endpoint(**arguments)))

            return await answerer.answer(request, self.name, work)

        return handle


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Returns the work's result; the work is cancelled once the caller has left. The body must have been read.

    Raises: CallerLeftError; whatever the work raises.
    """
    result = await first_of(work, _wait_until_left(request))
    if result is None:
        raise CallerLeftError
    return result[0]


async def _wait_until_left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _name(call: ServedCall, body: object) -> None:
    """Puts into the logs what only the body says: the caller's own id for the call, and how many items it has."""
    request_id, items = getattr(body, "request_id", ""), getattr(body, "items", None)
    if request_id:
        structlog.contextvars.bind_contextvars(request_id=request_id)
    call.num_items = None if items is None else len(items)


def _response_of(answer: object) -> Response:
    if isinstance(answer, Response):
        return answer
    assert isinstance(answer, BaseModel | Message), type(answer)
    text = answer.model_dump_json(by_alias=True) if isinstance(answer, BaseModel) else json_of(answer)
    return Response(text, media_type="application/json")


def _credentials_of(request: Request) -> CallCredentials:
    return CallCredentials(
        authorization=request.headers.get("authorization"),
        certificate_names=request.scope.get(CERTIFICATE_NAMES_KEY, ()),
        claimed_name=request.headers.get(CALLER_KEY),
        host="local" if request.client is None else request.client.host,
    )


def _timeout_of(request: Request) -> float | None:
    """Returns how long the caller waits; None if it has not said. Raises: InvalidRequestError."""
    text = request.headers.get(TIMEOUT_KEY)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InvalidRequestError(f"{TIMEOUT_KEY} is {reprlib.repr(text)}; send a positive number of seconds")
    return seconds
