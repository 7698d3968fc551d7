"""Relays a push to other replicas while it arrives here: to the first of them, which relays it to the next."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Protocol

from rlhf.client.policy import PolicyClient
from rlhf.client.push import Outcome, push_to_all
from rlhf.errors import ServiceError
from rlhf.logs import get_logger
from rlhf.weights import PushHeader, RelayedPush

log = get_logger(__name__)

CALLER = "policy"
"""What a replica calls itself where clients are not listed."""
PIECE_BYTES = 1024 * 1024
"""Most bytes of one chunk that is relayed; as large as the trainer's own chunks, so that none waits for another."""
NO_DEADLINE_SECONDS = 3600.0
"""What a push gets that came without a deadline."""


class Source(Protocol):
    """What of a push has arrived here; it can be read again and again until the push has ended here."""

    def read(self, offset_bytes: int, num_bytes: int) -> bytes:
        """Returns that part of the payload, which must have arrived."""

    async def wait_beyond(self, offset_bytes: int) -> int:
        """Returns how many bytes of the payload have arrived, as soon as they are more than `offset_bytes`."""


class Relay:
    """Relays one push. Between start() and the end of result() or cancel(), the source must stay readable."""

    def __init__(
        self, header: PushHeader, source: Source, *, patience_seconds: float, deadline_seconds: float | None
    ) -> None:
        """Sends nothing yet.

        Args:
            header: of the push as it came here; its relay_targets are who gets it. They are shown the token and the
                certificate that the environment names.
            source: its payload.
            patience_seconds: how long a replica may leave health checks unanswered, or refuse because it has another
                push under way, before it is left out.
            deadline_seconds: how long the push that came here may still take; None for one without a deadline.
        """
        self._header = header
        self._source = source
        self._patience_seconds = patience_seconds
        self._deadline_seconds = NO_DEADLINE_SECONDS if deadline_seconds is None else deadline_seconds
        self._verified = asyncio.Event()
        self._task: asyncio.Task[tuple[RelayedPush, ...]] | None = None

    def start(self) -> None:
        """Begins, if there is anybody to serve."""
        if self._header.relay_targets:
            self._task = asyncio.create_task(self._relay())

    def commit(self) -> None:
        """Lets the others commit; call it when the push is whole and verified here."""
        self._verified.set()

    async def result(self) -> tuple[RelayedPush, ...]:
        """Returns what became of the push at each target, in their order, when all of it is known."""
        return () if self._task is None else await self._task

    async def cancel(self) -> None:
        """Gives up what is still under way, and returns when nothing is read any more. May be called at any time."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({self._task})

    async def _relay(self) -> tuple[RelayedPush, ...]:
        async with contextlib.AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(PolicyClient(target, caller=CALLER))
                for target in self._header.relay_targets
            ]
            # A little less time than the push has here, where it has to be reported how this one ended.
            seconds = self._deadline_seconds - min(1.0, self._deadline_seconds / 10)
            outcomes = await push_to_all(
                clients,
                self._header,
                self._pieces,
                deadline_seconds=seconds,
                patience_seconds=self._patience_seconds,
            )
        return tuple(_reported(target, outcome) for target, outcome in outcomes.items())

    async def _pieces(self) -> AsyncIterator[bytes]:
        """Yields the payload as it arrives, and ends when it is verified."""
        offset = 0
        while offset < self._header.payload_bytes:
            arrived = await self._source.wait_beyond(offset)
            while offset < arrived:
                piece = self._source.read(offset, min(PIECE_BYTES, arrived - offset))
                yield piece
                offset += len(piece)
        await self._verified.wait()


def _reported(target: str, outcome: Outcome) -> RelayedPush:
    """Returns an outcome as it is reported to whoever sent the push here."""
    if isinstance(outcome, RelayedPush):
        return outcome
    if isinstance(outcome, ServiceError):
        log.warning("push not relayed", target=target, error=str(outcome))
        return RelayedPush(target=target, error=str(outcome))
    return RelayedPush(
        target=target,
        policy_version=outcome.policy_version,
        weights_digest=outcome.weights_digest,
        pause_seconds=outcome.pause_seconds,
        stage_seconds=outcome.stage_seconds,
    )
