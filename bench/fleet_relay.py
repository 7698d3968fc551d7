"""A TCP relay that counts what passes, at the rate of a sender's network link: all relays of one link share it."""

import asyncio
from contextlib import suppress

READ_BYTES = 64 * 1024
BURST_SECONDS = 0.02
"""What a link that was idle for a moment makes up for: sleeps end late, and the rate must be met all the same."""


class Link:
    """What one sender's network card lets through, and how much that was."""

    def __init__(self, bytes_per_second: float | None) -> None:
        """Args: None for no limit."""
        self.num_bytes = 0
        """Sent so far, with all that gRPC and HTTP/2 add."""
        self._bytes_per_second = bytes_per_second
        self._free_at = 0.0

    async def pass_on(self, num_bytes: int) -> None:
        """Returns when that many bytes have gone through."""
        self.num_bytes += num_bytes
        if self._bytes_per_second is not None:
            now = asyncio.get_running_loop().time()
            self._free_at = max(self._free_at, now - BURST_SECONDS) + num_bytes / self._bytes_per_second
            await asyncio.sleep(max(0.0, self._free_at - now))


class Relays:
    """Relays to services; close() ends them."""

    def __init__(self) -> None:
        self._servers: list[asyncio.Server] = []
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, link: Link, target: str) -> str:
        """Returns where a sender on that link reaches a target."""
        host, _, port = target.rpartition(":")

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            there_reader, there_writer = await asyncio.open_connection(host, int(port))
            self._writers |= {writer, there_writer}
            # Answers are small and come back over the other side's link.
            await asyncio.gather(_copy(reader, there_writer, link), _copy(there_reader, writer, Link(None)))

        server = await asyncio.start_server(relay, "127.0.0.1", 0, limit=READ_BYTES)
        self._servers.append(server)
        return f"127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        """Ends all relays and their connections."""
        for server in self._servers:
            server.close()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*self._tasks)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: Link) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(READ_BYTES):
            await link.pass_on(len(data))
            writer.write(data)
            await writer.drain()
    writer.close()
