"""Stages, and what brings one up to date: done again only if what it depends on has changed, as make does it."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rlhf.errors import ConfigError, RunError, ServiceError
from rlhf_cli.errors import LocalServiceError
from rlhf_cli.pipeline.lineage import Artifact, Digests, Lineage, StageRecord, State, installed_versions


class StageError(RunError):
    """A stage that failed; the message says what to look at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Something to be done once for each state of its inputs and settings."""

    name: str
    title: str
    """What it does, in a few words."""
    inputs: Mapping[str, Path]
    """Files and folders that decide the outcome."""
    settings: Mapping[str, Any]
    """Plain values that decide the outcome."""
    folder: Path
    """Where it writes, and nobody else does."""
    output: Path
    """The file or folder inside it that later stages read."""
    work: Callable[[bool], None]
    """Does it; told whether to go on from what an earlier attempt has left in the folder."""
    command: str = ""
    """That does the same by hand."""
    is_given: bool = False
    """Whether the output was handed to the pipeline, and there is nothing to do."""


class StageRunner:
    """Brings stages up to date and keeps their records."""

    def __init__(self, lineage: Lineage, report: Callable[[str], None]) -> None:
        """Args: where records are; who is told, in a sentence, why a stage is done or not."""
        self._lineage = lineage
        self._report = report
        self._digests = Digests()

    def bring_up_to_date(self, stage: Stage, *, force: bool = False) -> bool:
        """Returns whether the stage had to be done.

        An attempt that was interrupted goes on where it stopped if nothing has changed since. What an outdated attempt
        has left is moved to RUN_DIR/superseded.

        Args:
            force: do it afresh in any case.
        Raises: ConfigError if an input is missing; what the stage's work raises.
        """
        if stage.is_given:
            self._note_given(stage)
            return False
        inputs = {name: self._artifact(stage, name, path) for name, path in stage.inputs.items()}
        record = self._lineage.read(stage.name)
        reason = "asked for" if force else self._why_outdated(stage, record, inputs)
        if reason == "":
            self._report(f"{stage.name} is up to date: {stage.output}")
            return False
        goes_on = not force and record is not None and record.state != "done" and not _change(stage, record, inputs)
        if record is not None:
            self._report(f"{stage.name}: {'goes on where it stopped' if goes_on else reason}")
        if not goes_on:
            _supersede(stage.folder)
            record = None
        self._do(stage, record or _fresh_record(stage, inputs), resume=goes_on)
        return True

    def _do(self, stage: Stage, record: StageRecord, *, resume: bool) -> None:
        stage.folder.mkdir(parents=True, exist_ok=True)
        record = replace(record, state="running", attempts=record.attempts + 1, command=stage.command, error="")
        self._lineage.write(record)
        started = time.monotonic()
        state: State = "interrupted"
        error_text = ""
        output = None
        try:
            stage.work(resume)
            output = self._made(stage)
            state = "done"
        except (ConfigError, ServiceError, RunError, LocalServiceError, OSError, ValueError) as error:
            state, error_text = "failed", str(error)
            raise
        finally:
            seconds = record.seconds + time.monotonic() - started
            self._lineage.write(replace(record, state=state, error=error_text, output=output, seconds=seconds))

    def _made(self, stage: Stage) -> Artifact:
        if not stage.output.exists():
            raise StageError(f"{stage.name} ended without {stage.output}; what it printed says why")
        return Artifact(path=str(stage.output), digest=self._digests.of(stage.output))

    def _note_given(self, stage: Stage) -> None:
        if not stage.output.exists():
            raise ConfigError(f"{stage.name}.artifact is '{stage.output}': there is no such file or folder")
        output = Artifact(path=str(stage.output), digest=self._digests.of(stage.output))
        self._lineage.write(StageRecord(stage=stage.name, state="given", output=output))
        self._report(f"{stage.name} is given: {stage.output}")

    def _artifact(self, stage: Stage, name: str, path: Path) -> Artifact:
        try:
            return Artifact(path=str(path), digest=self._digests.of(path))
        except FileNotFoundError:
            raise ConfigError(
                f"{stage.name} needs {name}, '{path}', which is not there; do the stage that makes it, or mend the path"
            ) from None

    def _why_outdated(self, stage: Stage, record: StageRecord | None, inputs: Mapping[str, Artifact]) -> str:
        """Returns why a stage has to be done, in words; empty if it has not."""
        if record is None or record.state == "given":
            return "not done yet"
        if change := _change(stage, record, inputs):
            return change
        if record.state != "done" or record.output is None:
            return "it did not end"
        if not stage.output.exists():
            return f"{stage.output} is gone"
        return "" if self._digests.of(stage.output) == record.output.digest else f"{stage.output} was changed"


def _change(stage: Stage, record: StageRecord, inputs: Mapping[str, Artifact]) -> str:
    """Returns what is not as it was when the record was made; empty if all is."""
    before = {name: artifact.digest for name, artifact in record.inputs.items()}
    now = {name: artifact.digest for name, artifact in inputs.items()}
    changed = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    if changed:
        return f"changed since: {', '.join(changed)}"
    settings_now = json.loads(json.dumps(stage.settings))  # as a record keeps them: tuples are lists
    settings = sorted(
        name
        for name in record.settings.keys() | settings_now.keys()
        if record.settings.get(name) != settings_now.get(name)
    )
    return f"changed settings: {', '.join(settings)}" if settings else ""


def _fresh_record(stage: Stage, inputs: Mapping[str, Artifact]) -> StageRecord:
    return StageRecord(
        stage=stage.name,
        state="running",
        inputs=dict(inputs),
        settings=dict(stage.settings),
        versions=installed_versions(),
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def _supersede(folder: Path) -> None:
    """Moves what an outdated attempt left out of the way: nothing that was made is deleted."""
    if not folder.exists():
        return
    attic = folder.parent / "superseded"
    attic.mkdir(exist_ok=True)
    number = 1
    while (target := attic / f"{folder.name}-{number}").exists():
        number += 1
    folder.rename(target)
