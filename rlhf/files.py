"""Files and folders that appear whole or not at all, and are on the disk when they appear."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """Gives a path beside the target; what the block makes there, a file or a folder, is the target when it ends.

    If the block fails, the target is as before and nothing is left beside it. A process that is killed may leave a
    hidden ".NAME.partial", which the next attempt removes. One process at a time may make a target.

    Raises: OSError if the disk is full or refuses, or if the target is a folder with something in it.
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
    """Writes a text file in UTF-8, or replaces one. Raises: OSError, and what was there is then untouched."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def put_in_place(made: Path, target: Path) -> None:
    """Gives a finished file or folder its name, once all of it is on the disk. Both are in the same file system.

    Raises: OSError, as whole() does.
    """
    for path in (*made.rglob("*"), made):
        sync(path)
    made.replace(target)
    sync(target.parent)


def sync(path: Path) -> None:
    """Returns once a file's content, or the names in a folder, would outlive a power failure. Raises: OSError."""
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
