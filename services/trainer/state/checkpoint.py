"""What a training needs to go on, as one directory that is there whole or not at all.

    RUN_DIR/checkpoints/step-000012/
        policy/                Hugging Face checkpoint, with its tokenizer: what vLLM and transformers load
        policy_state/          what the next step needs (rlhf/learning/optimizer.py); so for every model in training
        state.json             written last: step, what is no tensor, metrics, size and digest of every file

Files are safetensors and JSON; nothing is pickled. On many ranks all write their parts, into one shared file system.
"""

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from blake3 import blake3
from transformers import AutoConfig

from rlhf.errors import ConfigError, RunError
from rlhf.files import sync
from rlhf.learning.ranks import ALONE, Ranks
from rlhf.logs import get_logger
from services.trainer.config.sections import CheckpointConfig

log = get_logger(__name__)

FORMAT_VERSION = 2
STATE_FILE = "state.json"


def write_directory(directory: Path, write: Callable[[Path], None], ranks: Ranks = ALONE) -> None:
    """Has `write` fill a directory beside its place, makes it durable, and only then puts it there.

    An older directory of the same name is replaced. On many ranks all must call it, and all run `write`: the directory
    is there already; after something that only one rank does, and that can fail, no collective may follow in it.

    Raises: RunError, on all ranks, if the disk is full or refuses; what was there before is then untouched.
    """
    temporary = directory.with_name(f".{directory.name}.tmp")
    replaced = directory.with_name(f".{directory.name}.old")

    def begin() -> None:
        if ranks.is_main:
            for leftover in (temporary, replaced):
                shutil.rmtree(leftover, ignore_errors=True)
            temporary.mkdir(parents=True)

    def sync_all() -> None:
        for path in (*temporary.rglob("*"), temporary):
            sync(path)

    def put_in_place() -> None:
        if ranks.is_main:
            if directory.exists():
                directory.rename(replaced)
            temporary.rename(directory)
            sync(directory.parent)

    try:
        for phase in (begin, lambda: write(temporary), sync_all, put_in_place):
            ranks.together(phase)
    except OSError as error:
        if ranks.is_main:
            shutil.rmtree(temporary, ignore_errors=True)
        raise RunError(f"could not write {directory}: {error}; free some space, then continue with --resume") from error
    if ranks.is_main:
        shutil.rmtree(replaced, ignore_errors=True)


class CheckpointFolder:
    """The checkpoints of one run, and which of them are kept."""

    def __init__(self, run_dir: Path, config: CheckpointConfig, ranks: Ranks = ALONE) -> None:
        self.path = run_dir / "checkpoints"
        self._config = config
        self._ranks = ranks

    def save(
        self,
        step: int,
        state: Mapping[str, Any],
        write_models: Callable[[Path], None],
        metrics: Mapping[str, float] | None = None,
    ) -> Path:
        """Writes the checkpoint of a step and deletes those that are not kept; returns its directory.

        Every rank must call it. Args:
            step: steps completed.
            state: all that is no tensor; must survive JSON. Only the main rank's counts.
            write_models: fills a directory with models and their states; see write_directory.
            metrics: of the step, for keep_best.
        Raises: RunError if the disk is full or refuses; older checkpoints are then untouched.
        """
        directory = self.path / f"step-{step:06d}"

        def write(path: Path) -> None:
            self._ranks.together(lambda: write_models(path))
            files = self._describe_files(path)
            if self._ranks.is_main:
                finite = {name: value for name, value in (metrics or {}).items() if math.isfinite(value)}
                whole = {"format_version": FORMAT_VERSION, "step": step, **state, "metrics": finite, "files": files}
                (path / STATE_FILE).write_text(json.dumps(whole, indent=1))

        known = b"yes" if self._ranks.is_main and read_state(directory) is not None else b""
        if not self._ranks.gather_bytes(known)[0]:
            write_directory(directory, write, self._ranks)
        if self._ranks.is_main:
            self._prune()
        return directory

    def newest(self) -> Path | None:
        """Returns the newest whole checkpoint, or None. Every rank must call it, and gets the same.

        One that is not whole is passed over, and the log says so; if it only looks whole, its marker is put aside, so
        that the run writes it anew when it gets there again.
        """
        name = self._newest_name() if self._ranks.is_main else ""
        name = self._ranks.gather_bytes(name.encode())[0].decode()
        return self.path / name if name else None

    def _newest_name(self) -> str:
        for directory in reversed(self._all()):
            state = read_state(directory)
            damaged = None if state is None else _damaged_file(directory, state["files"])
            if state is not None and damaged is None:
                return directory.name
            log.warning(
                "checkpoint is not whole; taking an older one",
                path=str(directory),
                reason=f"{damaged} is not as it was written" if damaged else "files are missing or cut short",
            )
            if damaged:
                (directory / STATE_FILE).rename(directory / f"{STATE_FILE}.damaged")
        return ""

    def _describe_files(self, path: Path) -> dict[str, dict[str, Any]]:
        """Returns size and digest of every file, each read by one of the ranks."""
        paths = sorted(each for each in path.rglob("*") if each.is_file())
        mine = {
            str(each.relative_to(path)): {"bytes": each.stat().st_size, "blake3": _digest(each)}
            for each in paths[self._ranks.rank :: self._ranks.world_size]
        }
        parts = self._ranks.gather_bytes(json.dumps(mine).encode())
        return {name: facts for part in parts for name, facts in sorted(json.loads(part).items())}

    def _all(self) -> list[Path]:
        return sorted(self.path.glob("step-*"))

    def _prune(self) -> None:
        states = {directory: read_state(directory) for directory in self._all()}
        whole = {directory: state for directory, state in states.items() if state is not None}
        kept = {*list(whole)[-self._config.keep_last :], *self._best(whole)}
        if every := self._config.keep_every:
            kept |= {directory for directory, state in whole.items() if state["step"] % every == 0}
        for directory in states.keys() - kept:
            # The marker first: a deletion that is cut short must not leave something that looks whole.
            (directory / STATE_FILE).unlink(missing_ok=True)
            shutil.rmtree(directory, ignore_errors=True)

    def _best(self, whole: Mapping[Path, Mapping[str, Any]]) -> list[Path]:
        """The checkpoint whose metric is best, the newest of equals; none if none has the metric."""
        name, sign = self._config.keep_best, 1.0 if self._config.keep_best_order == "max" else -1.0
        values = {path: sign * state["metrics"][name] for path, state in whole.items() if name in state["metrics"]}
        return [max(values, key=lambda path: (values[path], path))] if values else []


def read_state(directory: Path) -> dict[str, Any] | None:
    """Returns the state of a checkpoint, or None if it is not whole: no marker, or a file missing or cut short.

    Raises: ConfigError if it was written in another format.
    """
    try:
        state: dict[str, Any] = json.loads((directory / STATE_FILE).read_text())
        version = state["format_version"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if version != FORMAT_VERSION:
        raise ConfigError(
            f"{directory} has format_version {version}, this trainer reads {FORMAT_VERSION}: resume with the release "
            "that wrote it"
        )
    try:
        whole = all((directory / name).stat().st_size == facts["bytes"] for name, facts in state["files"].items())
    except (OSError, KeyError):
        return None
    return state if whole else None


def require_same_model(checkpoint: Path, configured: Path, field: str) -> None:
    """Raises ConfigError, naming what differs, if a checkpointed model is not of the configured one's architecture."""
    saved, wanted = (_shape_of(path) for path in (checkpoint, configured))
    for key in sorted(saved.keys() | wanted.keys()):
        if saved.get(key) != wanted.get(key):
            raise ConfigError(
                f"{checkpoint} is a checkpoint of another model: its {key} is {saved.get(key)}, at {field} "
                f"('{configured}') it is {wanted.get(key)}; resume with the model that the run began with, or choose "
                "another run_dir"
            )


def _shape_of(path: Path) -> dict[str, Any]:
    """Returns the model type and every whole number of a model's config: sizes, counts and token ids."""
    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True).to_dict()
    except (OSError, ValueError) as error:
        raise ConfigError(f"'{path}' holds no model configuration: {error}") from None
    return {key: value for key, value in config.items() if key == "model_type" or type(value) is int}


def _digest(path: Path) -> str:
    return blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()


def _damaged_file(directory: Path, files: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Returns the first file whose content is not what was written."""
    return next((name for name, facts in files.items() if _digest(directory / name) != facts["blake3"]), None)
