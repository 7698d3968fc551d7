"""Errors on their way to an HTTP caller: the status, the code, the message, and when to come back."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict

from rlhf.errors import InvalidRequestError, OverloadedError, ServiceError

RETRY_AFTER_SECONDS = 1.0
"""What a caller is told where nothing better is known."""

_HTTP_STATUS: Mapping[str, int] = MappingProxyType(
    {
        "INVALID_ARGUMENT": 400,
        "OUT_OF_RANGE": 400,
        "UNAUTHENTICATED": 401,
        "PERMISSION_DENIED": 403,
        "NOT_FOUND": 404,
        "FAILED_PRECONDITION": 409,
        "RESOURCE_EXHAUSTED": 429,
        "UNAVAILABLE": 503,
        "DEADLINE_EXCEEDED": 504,
    }
)


class Problem(BaseModel):
    """What went wrong."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    code: str
    """invalid_argument, unauthenticated, permission_denied, resource_exhausted, unavailable, and so on."""
    message: str
    """Names the field, the value and the remedy."""


class ErrorAnswer(BaseModel):
    """The body of every response that is no success."""

    error: Problem


ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorAnswer, "description": "The request is wrong as a whole; the message says what to mend."},
    401: {"model": ErrorAnswer, "description": "No known token or certificate."},
    403: {"model": ErrorAnswer, "description": "The caller lacks the scope."},
    413: {"model": ErrorAnswer, "description": "The body is larger than http.max_body_bytes."},
    422: {
        "model": ErrorAnswer,
        "description": "A part has no answer, where only the whole call can say so.",
    },
    429: {"model": ErrorAnswer, "description": "The queue is full; Retry-After says when there should be room."},
    503: {"model": ErrorAnswer, "description": "Loading, or ending; repeat the call."},
    504: {"model": ErrorAnswer, "description": "Not done within the caller's x-request-timeout-seconds."},
}
"""How FastAPI documents what a GuardedRoute answers beside a success."""


class BodyTooLargeError(InvalidRequestError):
    """The request's body is larger than http.max_body_bytes; it was not read."""

    http_status: ClassVar[int] = 413
    code: ClassVar[str] = "body_too_large"


class MediaTypeError(InvalidRequestError):
    """The request's body is said to be of a kind that the route does not take."""

    http_status: ClassVar[int] = 415
    code: ClassVar[str] = "unsupported_media_type"


class SlowBodyError(InvalidRequestError):
    """The request's body did not arrive in time."""

    http_status: ClassVar[int] = 408
    code: ClassVar[str] = "request_timeout"


def error_response(error: ServiceError) -> JSONResponse:
    """Returns what a caller gets: {"error": {"code", "message"}}."""
    status = getattr(error, "http_status", None) or _HTTP_STATUS.get(error.status, 500)
    headers = {}
    if status in (429, 503):
        # Whole seconds, as RFC 9110 has it, and never 0: that would ask for a storm.
        headers["retry-after"] = str(max(1, math.ceil(_retry_after_seconds(error))))
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    return error_body(status, getattr(error, "code", error.status.lower()), str(error), headers)


def error_body(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Returns the response for an error that is no ServiceError, such as a path that does not exist."""
    return JSONResponse({"error": {"code": code, "message": message}}, status_code=status, headers=headers)


def _retry_after_seconds(error: ServiceError) -> float:
    seconds = getattr(error, "retry_after_seconds", None) if isinstance(error, OverloadedError) else None
    return RETRY_AFTER_SECONDS if seconds is None else float(seconds)
