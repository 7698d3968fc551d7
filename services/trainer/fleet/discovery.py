"""Where the replicas of the policy service are: as listed, or as DNS, a file or a cluster says just now."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

from rlhf.errors import ConfigError
from services.trainer.config.targets import check_entry
from services.trainer.fleet.sources import DnsSource, FileSource, ListedSource, Source


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
