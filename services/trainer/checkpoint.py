"""What a run needs to go on, as one directory that is there whole or not at all.

    RUN_DIR/checkpoints/step-000012/
        policy/, critic/                      Hugging Face checkpoints, with their tokenizer
        policy_optimizer.safetensors, critic_optimizer.safetensors
        state.json                            written last: step, versions, KL controller, prompts, size of each file

Files are safetensors and JSON; nothing is pickled.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_services.common.errors import ConfigError
from rlhf_services.common.logs import get_logger
from rlhf_services.trainer.errors import RunError
from rlhf_services.trainer.learning.optimizer import MasterOptimizer
from rlhf_services.trainer.learning.ranks import Ranks
from rlhf_services.trainer.learning.state_files import read_state as restore_state
from rlhf_services.trainer.learning.state_files import write_state

log = get_logger(__name__)

FORMAT_VERSION = 1
STATE_FILE = "state.json"


def write_directory(directory: Path, write: Callable[[Path], None]) -> None:
    """Has `write` fill a directory beside its place, makes it durable, and only then puts it there.

    An older directory of the same name is replaced. Raises: RunError if the disk is full or refuses; what was there
    before is then untouched.
    """
    temporary = directory.with_name(f".{directory.name}.tmp")
    replaced = directory.with_name(f".{directory.name}.old")
    try:
        for leftover in (temporary, replaced):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary.mkdir(parents=True)
        write(temporary)
        for path in (*temporary.rglob("*"), temporary):
            _sync(path)
        if directory.exists():
            directory.rename(replaced)
        temporary.rename(directory)
        _sync(directory.parent)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise RunError(f"could not write {directory}: {error}; free some space, then continue with --resume") from error
    shutil.rmtree(replaced, ignore_errors=True)


def save_policy(directory: Path, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Writes a Hugging Face checkpoint that transformers and vLLM load, whole or not at all."""

    def write(path: Path) -> None:
        policy.save_pretrained(path)
        tokenizer.save_pretrained(path)

    write_directory(directory, write)


def save_optimizer(path: Path, optimizer: MasterOptimizer) -> None:
    """Writes an optimizer's state as safetensors."""
    write_state(path, optimizer, Ranks())


def load_optimizer(path: Path, optimizer: MasterOptimizer) -> None:
    """Restores what save_optimizer wrote. Raises: ConfigError if it is of another model."""
    try:
        restore_state(path, optimizer, Ranks())
    except ValueError as error:
        raise ConfigError(f"{path}: {error}; resume with the models that the run began with") from None


class CheckpointFolder:
    """The checkpoints of one run."""

    def __init__(self, run_dir: Path, *, keep_last: int) -> None:
        self.path = run_dir / "checkpoints"
        self._keep_last = keep_last

    def save(self, step: int, state: dict[str, Any], write_models: Callable[[Path], None]) -> Path:
        """Writes the checkpoint of a step and deletes those that are too old; returns its directory.

        Args:
            step: steps completed.
            state: all that is no tensor; must survive JSON.
            write_models: fills a directory with the models and optimizer states.
        """
        directory = self.path / f"step-{step:06d}"

        def write(path: Path) -> None:
            write_models(path)
            files = {str(each.relative_to(path)): each.stat().st_size for each in path.rglob("*") if each.is_file()}
            whole = {"format_version": FORMAT_VERSION, "step": step, **state, "files": files}
            (path / STATE_FILE).write_text(json.dumps(whole, indent=1))

        if read_state(directory) is None:
            write_directory(directory, write)
        self._prune()
        return directory

    def newest(self) -> Path | None:
        """Returns the newest whole checkpoint, or None. One that is not whole is passed over, and the log says so."""
        for directory in reversed(self._all()):
            if read_state(directory) is not None:
                return directory
            log.warning("checkpoint is not whole; taking an older one", path=str(directory))
        return None

    def _all(self) -> list[Path]:
        return sorted(self.path.glob("step-*"))

    def _prune(self) -> None:
        for directory in self._all()[: -self._keep_last]:
            # The marker first: a deletion that is cut short must not leave something that looks whole.
            (directory / STATE_FILE).unlink(missing_ok=True)
            shutil.rmtree(directory, ignore_errors=True)


def read_state(directory: Path) -> dict[str, Any] | None:
    """Returns the state of a checkpoint, or None if it is not whole: no marker, or a file missing or cut short.

    Raises: ConfigError if it was written in another format.
    """
    try:
        state: dict[str, Any] = json.loads((directory / STATE_FILE).read_text())
        sizes = {name: (directory / name).stat().st_size for name in state["files"]}
    except (OSError, json.JSONDecodeError, KeyError):
        return None
    if sizes != state["files"]:
        return None
    if state["format_version"] != FORMAT_VERSION:
        raise ConfigError(
            f"{directory} has format_version {state['format_version']}, this trainer reads {FORMAT_VERSION}: resume "
            "with the release that wrote it"
        )
    return state


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


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
