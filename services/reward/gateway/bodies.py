"""Bodies of requests: read within bounds of size and time, and decoded without holding up the event loop."""

import asyncio
import reprlib
from collections.abc import Callable
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from rlhf_services.common.errors import InvalidRequestError
from rlhf_services.reward.gateway.http_errors import BodyTooLargeError, MediaTypeError, SlowBodyError

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")

BODY_SECONDS = 60.0
"""A body that takes longer to arrive is refused: its connection would be held for nothing."""
THREAD_BYTES = 100_000
"""A larger body is decoded in a thread; a smaller one takes less time than the change of threads."""
MAX_FAULTS_NAMED = 3


class CallerLeftError(asyncio.CancelledError):
    """The caller has closed the connection. Raised so that its work ends as a cancelled call does."""


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Returns the body. Raises: BodyTooLargeError, before all of it is read; SlowBodyError; CallerLeftError."""
    _require_identity(request)
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise _too_large(max_bytes)
    parts = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                parts += part
                if len(parts) > max_bytes:
                    raise _too_large(max_bytes)
    except TimeoutError:
        raise SlowBodyError(f"the body did not arrive within {BODY_SECONDS:g} s; send it at once") from None
    except ClientDisconnect:
        raise CallerLeftError from None
    return bytes(parts)


def require_json(request: Request) -> None:
    """Raises MediaTypeError if the body is said to be something other than JSON; without a word it is taken as such."""
    kind = request.headers.get("content-type", "")
    media, _, parameters = kind.lower().partition(";")
    is_json = media.strip() == "application/json" or media.strip().endswith("+json")
    charset = parameters.partition("charset=")[2].strip(' "')
    if (media.strip() and not is_json) or charset not in ("", "utf-8", "utf8"):
        raise MediaTypeError(f"content-type is {reprlib.repr(kind)}; send JSON in UTF-8 as application/json")


async def decoded(decode: Callable[[bytes], T], body: bytes) -> T:
    """Returns what `decode` makes of the body, in a thread if it is large. Raises: whatever `decode` raises."""
    if len(body) <= THREAD_BYTES:
        return decode(body)
    return await asyncio.to_thread(decode, body)


def parse_json(model: type[M], body: bytes) -> M:
    """Returns the body as a model. Raises InvalidRequestError naming the fields, their values and what is expected."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise InvalidRequestError(_message_of(error)) from None


def _require_identity(request: Request) -> None:
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() not in ("", "identity"):
        raise MediaTypeError(f"content-encoding is {reprlib.repr(encoding)}; send the body uncompressed")


def _too_large(max_bytes: int) -> BodyTooLargeError:
    return BodyTooLargeError(f"the body is larger than {max_bytes} bytes (http.max_body_bytes); split the batch")


def _message_of(error: ValidationError) -> str:
    faults = error.errors(include_url=False, include_context=False)
    sentences = [_sentence_of(fault["loc"], fault["msg"], fault["type"], fault["input"]) for fault in faults]
    more = len(sentences) - MAX_FAULTS_NAMED
    return "; ".join(sentences[:MAX_FAULTS_NAMED]) + (f"; and {more} more faults" if more > 0 else "")


def _sentence_of(path: tuple[int | str, ...], message: str, kind: str, value: object) -> str:
    message = message.removeprefix("Value error, ")
    if kind == "json_invalid":
        return f"the body is not JSON: {message.removeprefix('Invalid JSON: ')}"
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part[:80]}" for part in path).removeprefix(".")
    where = where or "the body"
    if kind in ("missing", "value_error"):
        return f"{where}: {message}"
    if kind == "extra_forbidden":
        return f"{where}: no such field; mend its name or leave it out"
    return f"{where} is {reprlib.repr(value)}: {message}"
