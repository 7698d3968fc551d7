"""The parts of a push as they come, watched for silence."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from rlhf.errors import InvalidRequestError, OverloadedError
from rlhf.pushes import PushHeader


@dataclass(frozen=True, slots=True)
class PushChunk:
    """A piece of the payload."""

    offset_bytes: int
    data: bytes | memoryview


@dataclass(frozen=True, slots=True)
class PushCommit:
    """The end of a whole payload."""


PushPart = PushHeader | PushChunk | PushCommit


class Incoming:
    """One push under way."""

    def __init__(self, parts: AsyncIterator[PushPart], idle_seconds: float) -> None:
        """Args: its parts; how long it may send nothing."""
        self.policy_version = 0
        """As soon as that is known."""
        self.ended = asyncio.Event()
        self._parts = parts
        self._idle_seconds = idle_seconds
        self._timeout: asyncio.Timeout | None = None
        self._silent_since = 0.0
        self._given_up = False

    async def next(self) -> PushPart:
        """Returns the next part. Raises: InvalidRequestError if none comes; OverloadedError if it was given up."""
        try:
            async with asyncio.timeout(self._idle_seconds) as self._timeout:
                self._silent_since = asyncio.get_running_loop().time()
                return await anext(self._parts)
        except StopAsyncIteration:
            raise InvalidRequestError("the stream ended before its commit; nothing was changed: push again") from None
        except TimeoutError:
            if self._given_up:
                raise OverloadedError(
                    "the push had fallen silent when another one came, so it was given up and nothing was changed: "
                    "push again"
                ) from None
            raise InvalidRequestError(
                f"nothing came for {self._idle_seconds:g} s, so the push was given up and nothing was changed: "
                "push again"
            ) from None
        finally:
            self._timeout = None

    def give_up_if_silent(self, seconds: float) -> bool:
        """Gives the push up if it has sent nothing for so long while it was waited for; returns whether it ends now."""
        if self._timeout is not None and not self._given_up:
            now = asyncio.get_running_loop().time()
            if now - self._silent_since >= seconds:
                self._given_up = True
                self._timeout.reschedule(now)
        return self._given_up
