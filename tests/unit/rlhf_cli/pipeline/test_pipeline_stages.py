"""Stages that only write files: which are done, which are not, and what is recorded of them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf.errors import ConfigError
from rlhf_cli.pipeline.lineage import Digests, Lineage
from rlhf_cli.pipeline.stages import Stage, StageError, StageRunner


class Bench:
    """A run directory with stages that add their input's text to their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lineage = Lineage(folder)
        self.messages: list[str] = []
        self.done: list[tuple[str, bool]] = []
        (folder / "input.txt").write_text("a")

    def stage(self, name: str, source: Path, work: Callable[[bool], None] | None = None, **settings: object) -> Stage:
        output = self.folder / name / "out.txt"

        def append(resume: bool) -> None:
            self.done.append((name, resume))
            output.write_text(source.read_text() + name)

        return Stage(
            name=name,
            title="append",
            inputs={"source": source},
            settings=settings,
            folder=self.folder / name,
            output=output,
            work=work or append,
            command=f"rlhf {name}",
        )

    def run(self, *stages: Stage, force: bool = False) -> list[tuple[str, bool]]:
        """Returns which stages were done, and whether they went on."""
        self.done.clear()
        runner = StageRunner(self.lineage, self.messages.append)
        for stage in stages:
            runner.bring_up_to_date(stage, force=force)
        return list(self.done)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def two(bench: Bench, **settings: object) -> tuple[Stage, Stage]:
    first = bench.stage("first", bench.folder / "input.txt", **settings)
    return first, bench.stage("second", first.output)


def test_a_stage_is_done_once(bench: Bench) -> None:
    assert bench.run(*two(bench)) == [("first", False), ("second", False)]
    assert (bench.folder / "second/out.txt").read_text() == "afirstsecond"
    assert bench.run(*two(bench)) == []
    assert bench.messages[-1].startswith("second is up to date")


def test_a_changed_input_has_it_and_what_follows_done_again(bench: Bench) -> None:
    bench.run(*two(bench))
    (bench.folder / "input.txt").write_text("b")
    assert bench.run(*two(bench)) == [("first", False), ("second", False)]
    assert "first: changed since: source" in bench.messages
    # Nothing that was made is lost.
    assert (bench.folder / "superseded/first-1/out.txt").read_text() == "afirst"


def test_an_input_written_anew_with_the_same_bytes_changes_nothing(bench: Bench) -> None:
    bench.run(*two(bench))
    (bench.folder / "input.txt").write_text("a")
    assert bench.run(*two(bench)) == []


def test_a_changed_setting_has_the_stage_done_again_but_not_what_follows_if_its_outcome_is_the_same(
    bench: Bench,
) -> None:
    bench.run(*two(bench, rate=(1, 2)))
    assert bench.run(*two(bench, rate=[1, 2])) == []  # tuples are lists in a record
    assert bench.run(*two(bench, rate=[1, 3])) == [("first", False)]
    assert "first: changed settings: rate" in bench.messages


def test_an_output_that_is_gone_or_was_changed_is_made_again(bench: Bench) -> None:
    first, second = two(bench)
    bench.run(first, second)
    first.output.unlink()
    assert bench.run(first, second) == [("first", False)]
    first.output.write_text("forged")
    assert bench.run(first, second) == [("first", False)]


def test_force_does_a_stage_afresh(bench: Bench) -> None:
    first, _ = two(bench)
    bench.run(first)
    assert bench.run(first, force=True) == [("first", False)]


def test_a_stage_that_failed_says_why_and_goes_on_where_it_stopped(bench: Bench) -> None:
    def fail(resume: bool) -> None:
        raise StageError("the reward service is away")

    source = bench.folder / "input.txt"
    with pytest.raises(StageError):
        bench.run(bench.stage("first", source, fail))
    record = bench.lineage.read("first")
    assert record is not None
    assert (record.state, record.error, record.attempts) == ("failed", "the reward service is away", 1)
    assert bench.run(bench.stage("first", source)) == [("first", True)]
    record = bench.lineage.read("first")
    assert record is not None
    assert (record.state, record.error, record.attempts) == ("done", "", 2)


def test_a_stage_that_was_killed_starts_afresh_if_its_input_has_changed_since(bench: Bench) -> None:
    def interrupt(resume: bool) -> None:
        raise KeyboardInterrupt

    source = bench.folder / "input.txt"
    with pytest.raises(KeyboardInterrupt):
        bench.run(bench.stage("first", source, interrupt))
    record = bench.lineage.read("first")
    assert record is not None
    assert record.state == "interrupted"
    source.write_text("b")
    assert bench.run(bench.stage("first", source)) == [("first", False)]


def test_a_stage_that_makes_nothing_is_an_error(bench: Bench) -> None:
    with pytest.raises(StageError, match="first ended without"):
        bench.run(bench.stage("first", bench.folder / "input.txt", lambda resume: None))


def test_an_input_that_is_not_there_is_named(bench: Bench) -> None:
    with pytest.raises(ConfigError, match=r"second needs source, '.*out\.txt', which is not there"):
        bench.run(two(bench)[1])


def test_an_artifact_that_is_given_is_recorded_and_nothing_is_done(bench: Bench) -> None:
    given = Stage(
        name="label",
        title="given",
        inputs={},
        settings={},
        folder=bench.folder / "label",
        output=bench.folder / "input.txt",
        work=lambda resume: None,
        is_given=True,
    )
    bench.run(given)
    record = bench.lineage.read("label")
    assert record is not None
    assert record.state == "given"
    assert record.output is not None
    assert record.output.digest == Digests().of(bench.folder / "input.txt")


def test_the_lineage_says_what_was_made_from_what(bench: Bench) -> None:
    bench.run(*two(bench, seed=3))
    first, second = json.loads((bench.folder / "lineage.json").read_text())["stages"]
    assert second["inputs"]["source"] == first["output"]
    assert first["settings"] == {"seed": 3}
    assert first["command"] == "rlhf first"
    assert "python" in first["versions"]
    assert [record.stage for record in Lineage(bench.folder).read_all()] == ["first", "second"]
    assert first["started_at"].endswith("+00:00")


def test_a_damaged_record_is_refused_by_name(bench: Bench) -> None:
    bench.run(*two(bench))
    (bench.folder / "lineage/first.json").write_text('{"stage": "first"')
    with pytest.raises(ConfigError, match=r"first\.json is no record of a stage"):
        bench.run(*two(bench))


def test_the_digest_of_a_folder_is_that_of_its_files_wherever_it_lies(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub/x").write_text("x")
        (tmp_path / name / "empty").write_text("")
    digests = Digests()
    assert digests.of(tmp_path / "one") == digests.of(tmp_path / "other")
    (tmp_path / "other/sub/x").rename(tmp_path / "other/sub/y")
    assert digests.of(tmp_path / "one") != digests.of(tmp_path / "other")
