"""What a run on a cluster is: an algorithm, a TOML file, the files that it names, and how many processes train.

Everything is checked here, before anything is created.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rlhf.config import Section, load_values, suggestion
from rlhf.errors import ConfigError
from services.trainer.trainings import TRAININGS

CONFIG_KEY = "run.toml"
MOST_BYTES = 1024 * 1024
"""A ConfigMap holds no more."""
LONGEST_NAME = 50
"""Pods are named run-NAME-INDEX-xxxxx, and a host name has at most 63 characters."""
NAME_PATTERN = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
KEY_PATTERN = re.compile(r"[-._a-zA-Z0-9]+")
DATA_SUFFIXES = (".jsonl", ".parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """A run as it is submitted."""

    name: str
    algorithm: str
    """One of TRAININGS."""
    toml: str
    """The text of its configuration."""
    files: Mapping[str, bytes]
    """Contents by name; they lie beside the configuration."""
    nodes: int = 1
    """Pods that train together."""
    processes_per_node: int | None = None
    """Ranks in each pod; None takes the GPUs of the pod, or 1."""
    image: str | None = None
    """Instead of the template's."""

    @property
    def object_name(self) -> str:
        """The name of its ConfigMap, Job and Service."""
        return f"run-{self.name}"


def read_run(
    algorithm: str,
    config: Path,
    *,
    name: str | None = None,
    files: Sequence[Path] = (),
    nodes: int = 1,
    processes_per_node: int | None = None,
    image: str | None = None,
) -> RunSpec:
    """Returns the run in a TOML file, checked as the trainer will check it.

    Args:
        name: of the run; None takes the file's name without its suffix.
        files: what the configuration names by relative paths.
    Raises: ConfigError naming the field or flag.
    """
    if algorithm not in TRAININGS:
        raise ConfigError(f"unknown algorithm '{algorithm}'{suggestion(algorithm, TRAININGS)}")
    run_name = check_name(config.stem if name is None else name, "--config" if name is None else "--name")
    toml, values = _read_toml(config)
    checked = load_values(TRAININGS[algorithm].config_class, {**values, "run_dir": str(run_dir(run_name))}, str(config))
    contents = _read_files(files)
    _check_paths(checked, contents)
    size = len(toml.encode()) + sum(len(content) for content in contents.values())
    if size > MOST_BYTES:
        raise ConfigError(
            f"--config and --file have {size:,} bytes together, but a ConfigMap holds {MOST_BYTES:,}; put the large "
            "files on the volume of the runs or the models, and name them by absolute paths"
        )
    return RunSpec(
        name=run_name,
        algorithm=algorithm,
        toml=toml,
        files=contents,
        nodes=nodes,
        processes_per_node=processes_per_node,
        image=image,
    )


def run_dir(name: str) -> PurePosixPath:
    """Returns the directory of a run, on the volume of the runs."""
    return PurePosixPath("/runs") / name


def check_name(name: str, flag: str) -> str:
    """Returns the name if Kubernetes takes it. Raises: ConfigError naming the flag."""
    if NAME_PATTERN.fullmatch(name) and len(name) <= LONGEST_NAME:
        return name
    hint = "; give another one with --name" if flag == "--config" else ""
    raise ConfigError(
        f"{flag} makes the run's name '{name}'; it should be at most {LONGEST_NAME} lower-case letters, digits and "
        f"hyphens, and begin and end with a letter or digit{hint}"
    )


def _read_toml(path: Path) -> tuple[str, dict[str, object]]:
    """Returns the text of a TOML file, and its values."""
    try:
        text = path.read_text(encoding="utf-8")
        return text, tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"cannot be read as TOML: {error}"
        raise ConfigError(f"--config is '{path}': {reason}") from None


def _read_files(paths: Sequence[Path]) -> dict[str, bytes]:
    contents: dict[str, bytes] = {}
    for path in paths:
        if path.name == CONFIG_KEY or path.name in contents:
            raise ConfigError(f"--file is '{path}': there is a '{path.name}' already; rename one of them")
        if not KEY_PATTERN.fullmatch(path.name):
            raise ConfigError(f"--file is '{path}': use only letters, digits, '.', '_' and '-' in its name")
        try:
            contents[path.name] = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"--file is '{path}': {error.strerror}") from None
    return contents


def _check_paths(config: Section, files: Mapping[str, bytes]) -> None:
    """Raises ConfigError for a relative path that will not be there."""
    for field, path in _relative_paths(config):
        if path in files:
            continue
        beside = PurePosixPath(path).name
        remedy = (
            f"it lies beside the configuration: set {field} to '{beside}'"
            if beside in files
            else f"give the file with --file {path}, or an absolute path inside the container"
        )
        raise ConfigError(f"{field} is '{path}', which is not among the run's files; {remedy}")


def _relative_paths(section: Section, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields the dotted field and the value of every relative path to a file or folder."""
    for field in type(section).model_fields:
        value = getattr(section, field)
        if isinstance(value, Section):
            yield from _relative_paths(value, f"{prefix}{field}.")
            continue
        names_file = isinstance(value, Path) or (isinstance(value, str) and value.endswith(DATA_SUFFIXES))
        if names_file and not Path(value).is_absolute():
            yield f"{prefix}{field}", str(value)
