"""Atomic writes: files and folders that appear completely or not at all, and are synced to disk before."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """Yields a path beside the target. The file or folder that the block makes there becomes the target at its end.

    If the block fails, the target is unchanged and nothing is left beside it. A killed process may leave a hidden
    ".NAME.partial", which the next attempt removes. Only one process at a time may make a target.

    Raises: OSError if the disk is full or fails, or if the target is a folder that is not empty.
    """
    partial = target.with_name(f".{target.name}.partial")
    _remove(partial)
    try:
        yield partial
        put_in_place(partial, target)
    except BaseException:
        _remove(partial)
        raise


def write_whole(path: Path, text: str) -> None:
    """Writes or replaces a text file in UTF-8. Raises: OSError; the old file is then unchanged."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def put_in_place(made: Path, target: Path) -> None:
    """Renames a finished file or folder to the target after syncing it. Both must be in the same file system.

    Raises: OSError, as whole().
    """
    for path in (*made.rglob("*"), made):
        sync(path)
    made.replace(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Syncs a file's content, or the names in a folder, to disk, to survive a power failure. Raises: OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
