"""The configuration of a training in a pipeline: its table, what is filled in, and which parts decide the outcome."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from rlhf.config import Section, load_values
from services.trainer.trainings import Training

OURS = ("enabled", "artifact")
"""Keys of a training's table that are the pipeline's own."""
UNCOMPARED = ("run_dir", "services", "server", "evaluation", "watch")
"""Sections that say where something is, or what is looked at: another address makes no other model."""


def has_field(cls: type[BaseModel], path: str) -> bool:
    """Returns whether a configuration has the field at a dotted path."""
    section: Any = cls
    for part in path.split("."):
        if not (isinstance(section, type) and issubclass(section, BaseModel)) or part not in section.model_fields:
            return False
        section = section.model_fields[part].annotation
    return True


def is_set(values: Mapping[str, Any], path: str) -> bool:
    """Returns whether nested values have something at a dotted path."""
    for part in path.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return False
        values = values[part]
    return True


def build_config(
    training: Training, table: Mapping[str, Any], fills: Mapping[str, object], *, run_dir: Path, source: str
) -> Section:
    """Returns the configuration of a training: its table, and what the pipeline fills in where the table has nothing.

    Args:
        fills: values by dotted path; those of fields that this training does not have are passed over.
        source: where the table stands, for errors.
    Raises: ConfigError for a table that its class refuses.
    """
    cls = training.config_class
    values = _copy({key: value for key, value in table.items() if key not in OURS})
    values["run_dir"] = run_dir
    for path, value in fills.items():
        if has_field(cls, path) and not is_set(values, path):
            set_value(values, path, value)
    return load_values(cls, values, source)


def files_of(config: BaseModel, made: Sequence[Path], prefix: str = "") -> dict[str, Path]:
    """Returns the files and folders that a training reads, by the dotted path of the field that names them.

    Args:
        made: what earlier stages make, which may not be there yet.
    """
    files: dict[str, Path] = {}
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            files |= files_of(value, made, f"{prefix}{name}.")
        elif name.endswith("path") and isinstance(value, str | Path) and (Path(value) in made or _exists(value)):
            files[f"{prefix}{name}"] = Path(value)
    return files


def settings_of(config: Section, files: Mapping[str, Path]) -> dict[str, Any]:
    """Returns the values that were set and decide what is learned: no paths, which inputs are, and no addresses."""
    values = config.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    return {
        path: value
        for path, value in _flatten(values).items()
        if path not in files and path.split(".")[0] not in UNCOMPARED
    }


def _exists(value: str | Path) -> bool:
    """Whether a value names a file or folder here; texts that name none are data set names, or no names at all."""
    return bool(str(value)) and len(str(value)) < 4096 and Path(value).exists()


def _copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(value) if isinstance(value, Mapping) else value for key, value in values.items()}


def set_value(values: dict[str, Any], path: str, value: object) -> None:
    """Puts a value at a dotted path of nested values."""
    *sections, name = path.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    values[name] = value


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
