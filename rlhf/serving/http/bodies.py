"""Bodies of requests: read within bounds of size and time, and decoded without holding up the event loop."""

import asyncio
import reprlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request

from rlhf.errors import InvalidRequestError, OverloadedError
from rlhf.serving.http.errors import BodyTooLargeError, MediaTypeError, SlowBodyError

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")

BODY_SECONDS = 60.0
"""A body that takes longer to arrive is refused: its connection would be held for nothing."""
BODIES_AT_ONCE = 4
"""How many of the largest bodies there is room for; of smaller ones as many as fit into that."""
THREAD_BYTES = 100_000
"""A larger body is decoded in a thread; a smaller one takes less time than the change of threads."""
MAX_FAULTS_NAMED = 3


class CallerLeftError(asyncio.CancelledError):
    """The caller has closed the connection. Raised so that its work ends as a cancelled call does."""


class BodyRoom:
    """Room for the bodies of all calls together: without a bound many large ones would take the process's memory."""

    def __init__(self, max_body_bytes: int) -> None:
        """Args: max_body_bytes: the largest single body."""
        self.max_body_bytes = max_body_bytes
        self._bytes_left = BODIES_AT_ONCE * max_body_bytes

    @contextmanager
    def reader(self) -> Iterator["BodyReader"]:
        """Gives what reads one body; the body has its room until the end of the block."""
        reader = BodyReader(self)
        try:
            yield reader
        finally:
            self._bytes_left += reader.num_bytes

    def take(self, num_bytes: int) -> None:
        """Takes room. Raises: OverloadedError."""
        if num_bytes > self._bytes_left:
            raise OverloadedError("too many large bodies at once; come back later, or send smaller batches", 1.0)
        self._bytes_left -= num_bytes


class BodyReader:
    """Reads the body of one call."""

    def __init__(self, room: BodyRoom) -> None:
        self.num_bytes = 0
        """Bytes read so far."""
        self._room = room

    async def read(self, request: Request) -> bytes:
        """Returns the body. Raises: BodyTooLargeError, before all of it is read; OverloadedError; CallerLeftError."""
        _require_identity(request)
        max_bytes = self._room.max_body_bytes
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > max_bytes:
            raise _too_large(max_bytes)
        parts = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for part in request.stream():
                    if len(parts) + len(part) > max_bytes:
                        raise _too_large(max_bytes)
                    # As it arrives, not as announced: a caller that sends nothing takes nobody's room.
                    self._room.take(len(part))
                    self.num_bytes += len(part)
                    parts += part
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
