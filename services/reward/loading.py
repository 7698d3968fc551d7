"""LoadModel: a checkpoint is found safe to read, loaded beside the served model, and tried before it takes its place.

Its folder must lie below an allowed root, whatever symbolic links say, and hold no code.
"""

import asyncio
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.errors import ConfigError, InvalidRequestError, PreconditionError, ServiceError
from rlhf.logs import get_logger
from services.reward.config import ModelsConfig
from services.reward.scorers.config import ScorerConfig
from services.reward.scorers.fault_isolation import checked_outcome
from services.reward.scorers.scorer import ScoreError, Scorer, ScorerError, ScorerInfo, TextPair, reward_of

CODE_SUFFIXES = frozenset(
    {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz", ".h5", ".msgpack"}
    | {".py", ".pyc", ".so", ".dll", ".sh", ".zip", ".tar", ".gz"}
)
"""Files that are code, or may hold some: reading a pickle runs what it says."""

CODE_FILES = frozenset({"adapter_config.json"})
"""An adapter names its base model, which may lie anywhere."""

MAX_FILES = 1000
"""No checkpoint has more; a folder that does is something else, and is not walked to its end."""


def resolve_checkpoint(path: str, allowed_roots: Sequence[str]) -> Path:
    """Returns the folder that a path leads to, every link followed, once it is known to be safe to load.

    Raises: PreconditionError without allowed roots; InvalidRequestError if the folder is not below one of them, or
        has files that are not safe.
    """
    if not allowed_roots:
        raise PreconditionError("models.allowed_roots is empty, so nothing may be loaded; set it and start anew")
    if not path.startswith("/") or "\0" in path:
        raise InvalidRequestError(f"model_paths has {path!r}, which is no absolute path; write it from the root on")
    folder = _resolve(Path(path))
    roots = [_resolve(Path(root)) for root in allowed_roots]
    # First of all: whether something exists outside of the roots is not to be learned here.
    if folder is None or not _is_below(folder, roots):
        raise InvalidRequestError(
            f"model_paths has {path!r}, which does not lead below one of {', '.join(allowed_roots)} "
            "(models.allowed_roots, links followed); put the checkpoint there"
        )
    if not folder.is_dir():
        raise InvalidRequestError(f"model_paths has {path!r}: no such directory; give the folder of a checkpoint")
    for file in _files_of(path, folder):
        _require_safe(path, file, roots)
    if not any(folder.glob("*.safetensors")):
        raise InvalidRequestError(f"model_paths has {path!r}, which holds no .safetensors file; only these are read")
    return folder


def _resolve(path: Path) -> Path | None:
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # links in a circle, a name that is too long
        return None


def _is_below(path: Path, roots: Sequence[Path | None]) -> bool:
    return any(root is not None and path.is_relative_to(root) for root in roots)


def _files_of(path: str, folder: Path) -> list[Path]:
    """All that lies in the folder and below it. Links to folders are listed, and not followed."""
    files: list[Path] = []
    for parent, folders, names in os.walk(folder):
        files += [Path(parent, name) for name in (*folders, *names)]
        if len(files) > MAX_FILES:
            raise InvalidRequestError(
                f"model_paths has {path!r}, which holds more than {MAX_FILES} files; give the folder of one checkpoint"
            )
    return files


def _require_safe(path: str, file: Path, roots: Sequence[Path | None]) -> None:
    target = _resolve(file)
    if target is None or not _is_below(target, roots):
        raise InvalidRequestError(
            f"model_paths has {path!r}, in which {file.name!r} leads out of models.allowed_roots; copy what it links to"
        )
    suffixes = {file.suffix.lower(), target.suffix.lower()}
    if file.name in CODE_FILES or suffixes & CODE_SUFFIXES:
        raise InvalidRequestError(
            f"model_paths has {path!r}, which holds {file.name!r}; only safetensors weights are loaded, never pickles "
            "or code: convert the weights, and leave such files out of the folder"
        )
    if file.name.endswith(".safetensors.index.json"):
        _require_plain_shards(path, file)


def _require_plain_shards(path: str, index: Path) -> None:
    """The index of a sharded checkpoint names the files that hold its weights: they must be in the same folder."""
    try:
        shards = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise InvalidRequestError(
            f"model_paths has {path!r}, whose {index.name} cannot be read; save it again"
        ) from None
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise InvalidRequestError(
                f"model_paths has {path!r}, whose {index.name} names {shard!r}; shards are .safetensors files in the "
                "same folder"
            )


log = get_logger(__name__)

PROBE = TextPair("What is the capital of France?", "It is Paris.")

MAX_PROBE_DIFFERENCE = 1e-3
"""Between two rewards of the same pair: room for a judge's noise in a sum, none for a model left in training mode."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A scorer that has been loaded and tried."""

    scorer: Scorer[Any]
    config: ScorerConfig
    seconds: float


class ModelLoader:
    """Makes the scorers that LoadModel asks for. One load at a time."""

    def __init__(
        self,
        config: ScorerConfig,
        models: ModelsConfig,
        build: Callable[[ScorerConfig], Scorer[Any]],
        reloaded: Callable[[ScorerConfig, Sequence[str], str], ScorerConfig],
    ) -> None:
        """Loads nothing yet.

        Args:
            config: of the scorer that is served at first.
            models: what may be loaded.
            build: makes a scorer; may raise ConfigError.
            reloaded: the config with other paths in one of its components; may raise ConfigError.
        """
        self._config = config
        self._models = models
        self._build = build
        self._reloaded = reloaded

    async def load(self, paths: Sequence[str], component: str, present: ScorerInfo) -> Candidate:
        """The scorer of these checkpoints, tried. Give it to `keep` once it is served.

        Raises: InvalidRequestError if the paths may not be loaded or do not fit the scorer; PreconditionError if what
            lies there is no model, or fails the trial.
        """
        start = time.monotonic()
        try:
            config, scorer = await asyncio.to_thread(self._load, paths, component, present)
        except ServiceError as error:
            log.error("model not loaded", paths=list(paths), component=component, error=str(error))
            raise
        candidate = Candidate(scorer, config, time.monotonic() - start)
        log.info(
            "model loaded",
            paths=list(paths),
            component=component,
            model_version=scorer.info.version,
            previous_model_version=present.version,
            seconds=round(candidate.seconds, 3),
        )
        return candidate

    def keep(self, candidate: Candidate) -> None:
        """Takes the candidate's configuration as what the next load changes."""
        self._config = candidate.config

    def _load(self, paths: Sequence[str], component: str, present: ScorerInfo) -> tuple[ScorerConfig, Scorer[Any]]:
        """Runs in a thread."""
        if not paths:
            raise InvalidRequestError("model_paths is empty; name the folder of a checkpoint")
        try:
            # Before the folders are walked: whether they are as many as are needed.
            self._reloaded(self._config, paths, component)
            folders = [str(resolve_checkpoint(path, self._models.allowed_roots)) for path in paths]
            config = self._reloaded(self._config, folders, component)
        except ConfigError as error:
            raise InvalidRequestError(str(error)) from error
        try:
            scorer = self._build(config)
        except ServiceError:
            raise
        except Exception as error:
            # Whatever a library makes of a broken checkpoint: the model that is served is untouched by it.
            log.exception("model failed to load")
            raise PreconditionError(
                f"the model does not load: {error if isinstance(error, ConfigError) else type(error).__name__}; mend "
                "the checkpoint, or load another (the previous model is still served)"
            ) from error
        fault = _fault_of(scorer, present)
        if fault is not None:
            scorer.close()
            raise PreconditionError(f"{fault} (the previous model is still served)")
        return config, scorer


def _fault_of(scorer: Scorer[Any], present: ScorerInfo) -> str | None:
    """Says why a scorer cannot take the place of the present one; None if it can."""
    if scorer.info.tokenizer_digest != present.tokenizer_digest:
        return (
            f"the model's tokenizer is '{scorer.info.tokenizer_digest}', the present one is "
            f"'{present.tokenizer_digest}', and callers send ids made with that; load a model that shares it, or start "
            "another service"
        )
    try:
        rewards = [_probe(scorer) for _ in range(2)]
    except Exception as error:
        # A scorer may raise anything; then it is not served.
        log.exception("model failed its trial")
        reason = str(error) if isinstance(error, ScorerError) else type(error).__name__
        return f"the model failed to score a probe pair: {reason}; mend the checkpoint"
    for reward in rewards:
        if isinstance(reward, ScoreError):
            return f"the model failed to score a probe pair: {reward.message}"
    first, second = (reward_of(reward) for reward in rewards if not isinstance(reward, ScoreError))
    if not math.isclose(first, second, rel_tol=MAX_PROBE_DIFFERENCE, abs_tol=MAX_PROBE_DIFFERENCE):
        return f"the model gave the same pair the rewards {first} and {second}; a reward must not be random"
    return None


def _probe(scorer: Scorer[Any]) -> Any:
    prepared = scorer.prepare(PROBE)
    if isinstance(prepared, ScoreError):
        return prepared
    (outcome,) = scorer.score([prepared])
    return checked_outcome(outcome)
