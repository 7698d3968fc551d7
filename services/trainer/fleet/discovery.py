"""Where the replicas of the policy service are: as listed, or as DNS, a file or a cluster says just now.

Each entry of services.policy_targets is a Source; those of a cluster's Services are in kubernetes.py.
"""

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rlhf.errors import ConfigError
from services.trainer.config.sections import check_address, check_entry

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


def discover(targets: Sequence[str], report: Callable[[str], None]) -> "Discovery":
    """Returns what knows the replicas that the entries of services.policy_targets mean; watch() asks first.

    Args:
        targets: the entries; several forms may stand beside each other.
        report: told, in a sentence, when an entry has no answer, and when it has one again; once for each time.
    Raises: ConfigError for an entry that has none of the forms, or whose form needs what is not installed.
    """
    return Discovery([_source(entry) for entry in targets], report)


class Discovery:
    """The replicas, by "host:port", that all entries together name."""

    def __init__(self, sources: Sequence[Source], report: Callable[[str], None]) -> None:
        self._sources = sources
        self._report = report

    async def watch(self) -> AsyncGenerator[frozenset[str], None]:
        """Yields the replicas once every entry was asked, then after each change; close it when it is left early.

        An entry that has no answer keeps its last one.

        Raises: ConfigError if an entry can have no answer, ever: a cluster that refuses, for example.
        """
        changed = asyncio.Event()
        answers = [_Answer(source.entry, self._report, changed) for source in self._sources]
        tasks = [
            asyncio.create_task(source.follow(answer.found, answer.failed))
            for source, answer in zip(self._sources, answers, strict=True)
        ]
        for task in tasks:
            task.add_done_callback(lambda _: changed.set())
        last = None
        try:
            while True:
                await changed.wait()
                changed.clear()
                for task in tasks:
                    if task.done():
                        task.result()  # raises what ended it
                now = frozenset[str]().union(*(answer.replicas for answer in answers))
                if now != last and all(answer.was_asked for answer in answers):
                    last = now
                    yield now
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class _Answer:
    """What an entry said last."""

    def __init__(self, entry: str, report: Callable[[str], None], changed: asyncio.Event) -> None:
        self.replicas: frozenset[str] = frozenset()
        self.was_asked = False
        self._entry = entry
        self._report = report
        self._changed = changed
        self._is_failing = False

    def found(self, replicas: frozenset[str]) -> None:
        if self._is_failing:
            self._report(f"services.policy_targets: {self._entry} answers again, with {_count(len(replicas))}")
        elif not replicas and (self.replicas or not self.was_asked):
            self._report(f"services.policy_targets: {self._entry} has no replica just now")
        self._is_failing = False
        self.replicas = replicas
        self._note()

    def failed(self, why: str) -> None:
        if not self._is_failing:
            kept = f"its last answer stays, {_count(len(self.replicas))}" if self.replicas else "it is asked again"
            self._report(f"services.policy_targets: {self._entry} has no answer ({why}); {kept}")
        self._is_failing = True
        self._note()

    def _note(self) -> None:
        self.was_asked = True
        self._changed.set()


def _count(number: int) -> str:
    return "1 replica" if number == 1 else f"{number} replicas"


def _source(entry: str) -> Source:
    try:
        check_entry(entry)
    except ValueError as error:
        raise ConfigError(f"services.policy_targets: {error}") from None
    match entry.partition("://")[0]:
        case "dns":
            return DnsSource(entry)
        case "file":
            return FileSource(entry)
        case "kubernetes":
            from services.trainer.fleet.kubernetes import KubernetesSource

            return KubernetesSource(entry)
        case _:
            return ListedSource(entry)
