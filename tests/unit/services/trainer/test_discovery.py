import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from rlhf.errors import ConfigError
from services.trainer.config.sections import check_entry
from services.trainer.fleet.discovery import Discovery, DnsSource, Failed, FileSource, Found, discover


class Watched:
    """What a discovery yields, one after another, and what it reports."""

    def __init__(self) -> None:
        self.reports: list[str] = []
        self._answers: AsyncIterator[frozenset[str]]

    async def next(self) -> set[str]:
        async with asyncio.timeout(10):
            return set(await anext(self._answers))

    @asynccontextmanager
    async def of(self, discovery: Discovery) -> AsyncIterator["Watched"]:
        async with aclosing(discovery.watch()) as self._answers:
            yield self


@asynccontextmanager
async def watching(targets: Sequence[str]) -> AsyncIterator[Watched]:
    watched = Watched()
    async with watched.of(discover(targets, watched.reports.append)):
        yield watched


@dataclass(frozen=True)
class Told:
    """A source that says what a test tells it."""

    entry: str
    answers: "asyncio.Queue[frozenset[str] | str]"

    async def follow(self, found: Found, failed: Failed) -> None:
        while True:
            match await self.answers.get():
                case str(why):
                    failed(why)
                case replicas:
                    found(replicas)


async def test_listed_replicas_are_the_answer_and_nothing_is_reported():
    async with watching(["a:1", "10.0.0.7:50051", "[::1]:50051", "a:1"]) as watched:
        assert await watched.next() == {"a:1", "10.0.0.7:50051", "[::1]:50051"}
        assert watched.reports == []


@pytest.mark.parametrize(
    "entry",
    [
        "policy",
        "policy:",
        ":50051",
        "policy:0",
        "policy:65536",
        "pol icy:50051",
        "::1:50051",
        "http://policy:50051",
        "dns://policy:50051",
        "dns:///policy",
        "dns:///rlhf/policy:50051",
        "kubernetes:///policy",
        "kubernetes:////policy:50051",
        "kubernetes:///a/b/policy:50051",
        "file://replicas",
        "file:///",
        "file:///folder/",
    ],
)
def test_what_is_no_target_is_refused_by_the_name_of_the_field(entry: str):
    with pytest.raises(ConfigError, match=r"services\.policy_targets: '.+' (is|has|names) "):
        discover(["a:1", entry], print)


@pytest.mark.parametrize(
    "entry", ["dns:///policy:50051", "kubernetes:///policy:50051", "kubernetes:///rlhf/policy:50051", "file:///a/b"]
)
def test_every_form_of_target_is_taken(entry: str):
    assert check_entry(entry) == entry


def test_a_form_that_needs_a_package_says_which_extra_has_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "kubernetes.aio", None)
    monkeypatch.delitem(sys.modules, "services.trainer.fleet.kubernetes", raising=False)
    with pytest.raises(ConfigError, match=r"services\.policy_targets: .* pip install 'rlhf-services\[k8s\]'"):
        discover(["kubernetes:///policy:50051"], print)


async def test_a_name_stands_for_all_its_addresses():
    async with watching(["dns:///127.0.0.1:50051", "dns:///localhost:7"]) as watched:
        (local,) = await watched.next() - {"127.0.0.1:50051"}
        assert local in ("127.0.0.1:7", "[::1]:7")  # one family alone, though most machines give the name both


async def test_a_name_that_is_not_known_is_asked_again():
    watched = Watched()
    unknown = DnsSource("dns:///nowhere.invalid:50051", seconds=0.01)
    async with watched.of(Discovery([unknown], watched.reports.append)):
        assert await watched.next() == set()
        await asyncio.sleep(0.1)
    (report,) = watched.reports
    assert report.startswith("services.policy_targets: dns:///nowhere.invalid:50051 has no answer (")
    assert report.endswith("it is asked again")


async def test_a_file_is_read_again_when_it_changes(tmp_path: Path):
    file = tmp_path / "replicas.txt"
    file.write_text("# of rack 1\nnode1:50051\n\n  node2:50051   # the fast one\n")
    watched = Watched()
    async with watched.of(Discovery([FileSource(f"file://{file}", seconds=0.01)], watched.reports.append)):
        assert await watched.next() == {"node1:50051", "node2:50051"}
        file.write_text("node2:50051\nnode3:50051\n")
        # Between its truncation and its text the file may be seen empty.
        assert await watched.next() in (set(), {"node2:50051", "node3:50051"})


async def test_a_file_with_a_wrong_line_or_no_file_keeps_the_last_answer_and_says_so_once(tmp_path: Path):
    file, new = tmp_path / "replicas.txt", tmp_path / "new"
    watched = Watched()
    async with watched.of(Discovery([FileSource(f"file://{file}", seconds=0.01)], watched.reports.append)):
        assert await watched.next() == set()
        new.write_text("node1:50051\n")
        new.replace(file)
        assert await watched.next() == {"node1:50051"}
        new.write_text("node1:50051\nnode2\n")
        new.replace(file)
        await asyncio.sleep(0.2)
        new.write_text("node2:50051\n")
        new.replace(file)
        assert await watched.next() == {"node2:50051"}
    assert watched.reports == [
        f"services.policy_targets: file://{file} has no answer (No such file or directory); it is asked again",
        f"services.policy_targets: file://{file} answers again, with 1 replica",
        f"services.policy_targets: file://{file} has no answer ('node2' is not 'host:port' with a port from 1 to "
        "65535); its last answer stays, 1 replica",
        f"services.policy_targets: file://{file} answers again, with 1 replica",
    ]


async def test_entries_are_one_fleet_and_one_that_fails_keeps_what_it_said():
    first, second = Told("first", asyncio.Queue()), Told("second", asyncio.Queue())
    watched = Watched()
    async with watched.of(Discovery([first, second], watched.reports.append)):
        first.answers.put_nowait(frozenset({"a:1", "b:1"}))
        second.answers.put_nowait(frozenset({"b:1", "c:1"}))
        assert await watched.next() == {"a:1", "b:1", "c:1"}
        first.answers.put_nowait("away")
        first.answers.put_nowait("still away")
        second.answers.put_nowait(frozenset({"c:1"}))  # the first still says b:1
        await asyncio.sleep(0)
        first.answers.put_nowait(frozenset({"d:1"}))
        assert await watched.next() == {"c:1", "d:1"}
        second.answers.put_nowait(frozenset())
        assert await watched.next() == {"d:1"}
    assert watched.reports == [
        "services.policy_targets: first has no answer (away); its last answer stays, 2 replicas",
        "services.policy_targets: first answers again, with 1 replica",
        "services.policy_targets: second has no replica just now",
    ]


async def test_nothing_is_yielded_before_every_entry_was_asked():
    first, second = Told("first", asyncio.Queue()), Told("second", asyncio.Queue())
    watched = Watched()
    async with watched.of(Discovery([first, second], watched.reports.append)):
        first.answers.put_nowait(frozenset({"a:1"}))
        answer = asyncio.create_task(watched.next())
        await asyncio.sleep(0.05)
        assert not answer.done()
        second.answers.put_nowait("away")
        assert await answer == {"a:1"}


async def test_what_can_never_be_answered_ends_the_watch():
    @dataclass(frozen=True)
    class Forbidden:
        entry: str = "forbidden"

        async def follow(self, found: Found, failed: Failed) -> None:
            raise ConfigError("the Role is missing")

    watched = Watched()
    async with watched.of(Discovery([Forbidden()], watched.reports.append)):
        with pytest.raises(ConfigError, match="the Role is missing"):
            await watched.next()
