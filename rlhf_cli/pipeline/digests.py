"""BLAKE3 digests of what stages read and make."""

from pathlib import Path

from blake3 import blake3


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
