"""One file of the journal: lines that prove themselves whole, added at the end and never changed.

    e3b0c44298fc1c14 {"kind": "sample", ...}

The first word is the BLAKE3 checksum of the rest, in 16 hexadecimal digits.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from blake3 import blake3

from rlhf.errors import RunError
from rlhf.files import sync

FORMAT_VERSION = 1
CHECKSUM_DIGITS = 16


@dataclass(frozen=True, slots=True)
class JournalLines:
    """What a file holds."""

    records: list[dict[str, Any]]
    num_bytes: int
    """Of the whole lines; what stands behind them was cut off while it was written."""
    torn: bool
    """Whether something stands behind them."""

    @property
    def last_settings(self) -> dict[str, Any] | None:
        """Settings of the newest header, under which the next record would be; None without one."""
        headers = [record["settings"] for record in self.records if record["kind"] == "header"]
        return headers[-1] if headers else None

    def with_settings(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Yields the settings of the header above it, and the record, for every record but the headers."""
        settings: dict[str, Any] = {}
        for record in self.records:
            if record["kind"] == "header":
                settings = record["settings"]
            else:
                yield settings, record


def read_lines(path: Path) -> JournalLines:
    """Returns the records of a file; none if there is no such file. A torn last line is left out.

    Raises: RunError naming file and line if any but the last line is not what was written, or in another format.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return JournalLines([], 0, False)
    except OSError as error:
        raise RunError(f"could not read {path}: {error.strerror}; make it readable, then use --resume") from None
    records: list[dict[str, Any]] = []
    num_bytes = 0
    lines = BytesIO(data).readlines()
    for number, line in enumerate(lines, start=1):
        record = _decode(line)
        if record is None:
            if number < len(lines):
                raise RunError(
                    f"{path} line {number} has a wrong checksum: the file was changed or the disk is failing. Move it "
                    "away and use --resume: its rollouts are sampled again"
                )
            break
        _require_format(record, path)
        records.append(record)
        num_bytes += len(line)
    return JournalLines(records, num_bytes, torn=num_bytes < len(data))


class JournalWriter:
    """Adds records to a file. Each is with the operating system when append() returns, so a killed process loses none.

    Raises RunError wherever the disk is full or refuses; the file then still ends in a whole line.
    """

    def __init__(self, path: Path, num_bytes: int) -> None:
        """Opens the file, cut to the bytes that read_lines found whole, or makes a new one."""
        self._path = path
        self._num_bytes = num_bytes
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.ftruncate(self._descriptor, num_bytes)
        except OSError as error:
            raise self._failure(error) from error

    def append(self, record: Mapping[str, Any]) -> None:
        """Adds one record."""
        rest = _encode(record)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError as error:
            os.ftruncate(self._descriptor, self._num_bytes)
            raise self._failure(error) from error
        self._num_bytes = os.fstat(self._descriptor).st_size

    def sync(self) -> None:
        """Returns once everything is on the disk, where it outlives a power failure."""
        try:
            os.fsync(self._descriptor)
            sync(self._path.parent)
        except OSError as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)

    def _failure(self, error: OSError) -> RunError:
        return RunError(
            f"could not write {self._path}: {error.strerror}; free some space or mend the disk, then use --resume: "
            "what was journaled before is kept"
        )


def _require_format(record: Mapping[str, Any], path: Path) -> None:
    if record["kind"] == "header" and record["format_version"] != FORMAT_VERSION:
        raise RunError(
            f"{path} has format_version {record['format_version']}, this trainer reads {FORMAT_VERSION}: resume with "
            "the release that wrote it, or move it away so that its rollouts are sampled again"
        )


def _encode(record: Mapping[str, Any]) -> bytes:
    text = json.dumps(record, allow_nan=False).encode()
    return _checksum(text) + b" " + text + b"\n"


def _decode(line: bytes) -> dict[str, Any] | None:
    """Returns the record of a line, or None if it is not whole."""
    checksum, _, text = line.partition(b" ")
    if not line.endswith(b"\n") or checksum != _checksum(text[:-1]):
        return None
    record: dict[str, Any] = json.loads(text)
    return record


def _checksum(text: bytes) -> bytes:
    return blake3(text).hexdigest()[:CHECKSUM_DIGITS].encode()
