"""Hands a push on to other replicas while it arrives, as a chain: the trainer sends once, however many there are.

    trainer -> this replica -> forward_targets[0] -> forward_targets[1] -> ...

A replica that cannot be reached, or does not take the push, is left out: the next one is served from here instead, from
the beginning, out of what has been received. Nothing is waited for longer than the deadline of the push itself.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Protocol

from rlhf.errors import OverloadedError, ServiceError
from rlhf.pushes import ForwardedPush, PushHeader, PushResult
from rlhf.serving.logs import get_logger
from services.policy.weights.link import push_over_link

log = get_logger(__name__)

PIECE_BYTES = 1024 * 1024
"""Most bytes of one chunk that is handed on; as large as the trainer's own chunks, so that none waits for another."""
RETRY_SECONDS = 0.25
"""Pause before a replica that has another push under way is asked again."""
NO_DEADLINE_SECONDS = 3600.0
"""What a push gets that came without a deadline."""


class Receipt(Protocol):
    """What of a push has arrived here; it can be read again and again until the push has ended here."""

    def read(self, offset_bytes: int, num_bytes: int) -> bytes:
        """Returns that part of the payload, which must have arrived."""

    async def wait_beyond(self, offset_bytes: int) -> int:
        """Returns how many bytes of the payload have arrived, as soon as they are more than `offset_bytes`."""


class Forwarder:
    """Hands one push on. Between start() and the end of result() or cancel(), the receipt must stay readable."""

    def __init__(
        self, header: PushHeader, receipt: Receipt, *, patience_seconds: float, deadline_seconds: float | None
    ) -> None:
        """Sends nothing yet.

        Args:
            header: of the push as it came here; its forward_targets are who gets it.
            patience_seconds: how long a replica may leave health checks unanswered, or refuse because it has another
                push under way, before it is left out.
            deadline_seconds: how long the push that came here may still take; None for one without a deadline.
        """
        self._header = header
        self._receipt = receipt
        self._patience_seconds = patience_seconds
        self._deadline_seconds = NO_DEADLINE_SECONDS if deadline_seconds is None else deadline_seconds
        self._verified = asyncio.Event()
        self._task: asyncio.Task[tuple[ForwardedPush, ...]] | None = None

    def start(self) -> None:
        """Begins, if there is anybody to serve."""
        if self._header.forward_targets:
            self._ends = asyncio.get_running_loop().time() + self._deadline_seconds
            self._task = asyncio.create_task(self._forward())

    def commit(self) -> None:
        """Lets the others commit; call it when the push is whole and verified here."""
        self._verified.set()

    async def result(self) -> tuple[ForwardedPush, ...]:
        """Returns what became of the push at each target, in their order, when all of it is known."""
        return () if self._task is None else await self._task

    async def cancel(self) -> None:
        """Gives up what is still under way, and returns when nothing is read any more. May be called at any time."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({self._task})

    async def _forward(self) -> tuple[ForwardedPush, ...]:
        targets = self._header.forward_targets
        outcomes: tuple[ForwardedPush, ...] = ()
        while len(outcomes) < len(targets):
            outcomes += await self._serve(targets[len(outcomes)], targets[len(outcomes) + 1 :])
        return outcomes

    async def _serve(self, target: str, behind: tuple[str, ...]) -> tuple[ForwardedPush, ...]:
        """Returns what became of the push at a target, and at those behind it for which it has answered."""
        try:
            result = await self._push(target, behind)
        except ServiceError as error:
            log.warning("push not handed on", target=target, error=str(error))
            return (ForwardedPush(target=target, error=str(error)),)
        served = ForwardedPush(
            target=target,
            policy_version=result.policy_version,
            weights_digest=result.weights_digest,
            pause_seconds=result.pause_seconds,
            stage_seconds=result.stage_seconds,
        )
        # A replica that served the weights already has handed nothing on, and says so by naming nobody.
        named = tuple(each.target for each in result.forwarded)
        return (served, *result.forwarded) if named == behind[: len(named)] else (served,)

    async def _push(self, target: str, behind: tuple[str, ...]) -> PushResult:
        """Pushes to a target, again while it has another push under way. Raises: ServiceError."""
        loop = asyncio.get_running_loop()
        header = replace(self._header, forward_targets=behind)
        gives_up = loop.time() + self._patience_seconds
        while True:
            left = self._ends - loop.time()
            # Each link gets a little less time than the one before it, which has to report how it ended.
            deadline_seconds = max(0.0, left - min(1.0, left / 10))
            try:
                return await push_over_link(
                    target,
                    header,
                    self._pieces(),
                    patience_seconds=self._patience_seconds,
                    deadline_seconds=deadline_seconds,
                )
            except OverloadedError:
                # Such as one that a link before it, dead by now, has left behind: it is given up after a silence.
                if loop.time() >= gives_up:
                    raise
                await asyncio.sleep(RETRY_SECONDS)

    async def _pieces(self) -> AsyncIterator[bytes]:
        """Yields the payload as it arrives, and ends when it is verified."""
        offset = 0
        while offset < self._header.payload_bytes:
            arrived = await self._receipt.wait_beyond(offset)
            while offset < arrived:
                piece = self._receipt.read(offset, min(PIECE_BYTES, arrived - offset))
                yield piece
                offset += len(piece)
        await self._verified.wait()
