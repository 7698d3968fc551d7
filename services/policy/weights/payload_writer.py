"""Takes the pieces of a push off the event loop, and lets others follow how far it has come."""

import asyncio

from rlhf.client.tasks import News
from services.policy.weights.staged import Payload

WRITE_BYTES = 2 * 1024 * 1024
"""Of pieces that are written at once: to hand work to a thread and to hear that it is done takes time of its own."""
PIECE_BYTES = 1024
"""What a piece counts for beside its own bytes."""
MAX_WAITING_BYTES = 8 * 1024 * 1024
"""Of pieces that have arrived and are not yet written; the sender waits when there are more."""


class PayloadWriter:
    """Implements relay.Source for a payload. While a thread writes and hashes some pieces, the next ones arrive."""

    def __init__(self, payload: Payload) -> None:
        self._payload = payload
        self._waiting: list[tuple[int, bytes | memoryview]] = []
        self._waiting_bytes = 0
        self._flushing = False
        self._received = 0
        self._moved = News()
        self._writing: asyncio.Task[None] | None = None

    async def take(self, offset_bytes: int, data: bytes | memoryview) -> None:
        """Takes the next piece. Raises: InvalidRequestError if an earlier one is found to be wrong."""
        self._waiting.append((offset_bytes, data))
        self._waiting_bytes += len(data) + PIECE_BYTES
        if self._waiting_bytes >= WRITE_BYTES:
            self._start()
        while self._waiting_bytes > MAX_WAITING_BYTES:
            await self._moved.wait()
            self._start()

    async def flush(self) -> None:
        """Returns when all that was taken is written. Raises: InvalidRequestError if any of it is wrong."""
        self._flushing = True
        if self._waiting:
            self._start()
        if self._writing is not None:
            await asyncio.shield(self._writing)  # a thread at work is not to be left alone

    async def end(self) -> None:
        """Returns when nothing is being written any more, whatever came of it; what waits is dropped."""
        self._waiting.clear()
        if self._writing is not None:
            await asyncio.gather(self._writing, return_exceptions=True)

    def read(self, offset_bytes: int, num_bytes: int) -> bytes:
        """Returns a part of the payload, which must have arrived."""
        return self._payload.read(offset_bytes, num_bytes)

    async def wait_beyond(self, offset_bytes: int) -> int:
        """Returns how many bytes of the payload have arrived, as soon as they are more than `offset_bytes`."""
        while self._received <= offset_bytes:
            await self._moved.wait()
        return self._received

    def _start(self) -> None:
        """Begins to write what waits, if nothing is being written. Raises what was wrong with the pieces before."""
        if self._writing is not None and self._writing.done():
            self._writing.result()
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_waiting())

    async def _write_waiting(self) -> None:
        try:
            while self._waiting_bytes >= WRITE_BYTES or (self._flushing and self._waiting):
                pieces, self._waiting, self._waiting_bytes = self._waiting, [], 0
                await asyncio.to_thread(self._write, pieces)
                self._received = self._payload.received
                self._moved.tell()
        finally:
            self._moved.tell()

    def _write(self, pieces: list[tuple[int, bytes | memoryview]]) -> None:
        for offset_bytes, data in pieces:
            self._payload.write(offset_bytes, data)
