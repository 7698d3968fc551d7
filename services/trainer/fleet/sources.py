"""What an entry of services.policy_targets can be: a replica, a DNS name or a file; a Service is in kubernetes.py."""

import asyncio
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from services.trainer.config.targets import check_address

DNS_SECONDS = 2.0
"""Between two questions for a name; the answers of a cluster's DNS are good for 5 to 30 s."""
FILE_SECONDS = 1.0
"""Between two looks at a file."""

Found = Callable[[frozenset[str]], None]
Failed = Callable[[str], None]


class Source(Protocol):
    """An entry of services.policy_targets."""

    @property
    def entry(self) -> str:
        """As it stands in the configuration."""

    async def follow(self, found: Found, failed: Failed) -> None:
        """Returns once there is nothing more to learn, which may be never.

        Args:
            found: takes every answer, the same one again too.
            failed: takes, in words, why there is none just now; as often as it is so.
        Raises: ConfigError if there can be no answer, ever.
        """


@dataclass(frozen=True)
class ListedSource:
    """One replica, named."""

    entry: str

    async def follow(self, found: Found, failed: Failed) -> None:
        """Returns at once."""
        del failed
        found(frozenset({self.entry}))


@dataclass(frozen=True)
class DnsSource:
    """The addresses of a name, such as that of a headless Service: one replica at each."""

    entry: str
    seconds: float = DNS_SECONDS

    async def follow(self, found: Found, failed: Failed) -> None:
        """Asks for ever."""
        host, _, port = self.entry.removeprefix("dns:///").rpartition(":")
        loop = asyncio.get_running_loop()
        while True:
            try:
                infos = await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
            except OSError as error:
                failed(f"{error.strerror or error}")
            else:
                # A name with addresses of both families has each replica twice: only the preferred family counts.
                addresses = {str(info[4][0]) for info in infos if info[0] == infos[0][0]}
                found(frozenset(f"[{each}]:{port}" if ":" in each else f"{each}:{port}" for each in addresses))
            await asyncio.sleep(self.seconds)


@dataclass(frozen=True)
class FileSource:
    """The lines of a file; empty ones, and what follows a #, are left out."""

    entry: str
    seconds: float = FILE_SECONDS

    async def follow(self, found: Found, failed: Failed) -> None:
        """Reads for ever."""
        path = Path(self.entry.removeprefix("file://"))
        while True:
            try:
                text = await asyncio.to_thread(path.read_text)
                found(frozenset(_addresses(text)))
            except OSError as error:
                failed(f"{error.strerror}")
            except ValueError as error:  # an address, or bytes that are no text
                failed(f"{error}")
            await asyncio.sleep(self.seconds)


def _addresses(text: str) -> Iterable[str]:
    for line in text.splitlines():
        if address := line.partition("#")[0].strip():
            yield check_address(address)
