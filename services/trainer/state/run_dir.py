"""A run's directory: one trainer at a time in it, and the checkpoint that a new start finds there."""

import contextlib
import fcntl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf.errors import ConfigError


@contextlib.contextmanager
def locked(run_dir: Path, *, who: str = "trainer") -> Iterator[None]:
    """Keeps a second one out of the run's directory, which is made if it is not there; the system frees it if this
    process dies. Raises: ConfigError if there is a second one, or no directory that can be written."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = (run_dir / ".lock").open("w")
    except OSError as error:
        raise ConfigError(f"run_dir is '{run_dir}': {error.strerror}; choose a directory that can be written") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"run_dir is '{run_dir}': another {who} is running in it; stop that one first") from None
        yield


def require_wanted(run_dir: Path, found: Path | None, *, resume: bool) -> None:
    """Raises ConfigError if the directory holds a run already, up to what was `found`, and no --resume was given."""
    if found is not None and not resume:
        raise ConfigError(
            f"run_dir is '{run_dir}': it holds a run already, up to {found.name}; go on with --resume, or choose "
            "another directory"
        )


def changed_settings(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Returns "section.key old -> new" for every value of nested settings that differs."""
    changes: list[str] = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            changes += changed_settings(before, after, f"{prefix}{key}.")
        elif before != after:
            changes.append(f"{prefix}{key} {before} -> {after}")
    return changes
