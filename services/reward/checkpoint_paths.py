"""Which folders LoadModel may read: below an allowed root, whatever symbolic links say, and without any code."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from rlhf.errors import InvalidRequestError, PreconditionError

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
