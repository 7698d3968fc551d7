"""Rows of training data from JSONL and Parquet files, and from data sets on disk or of the Hugging Face hub.

Each row comes with its place for errors: "pairs.jsonl:7", "pairs.parquet row 7", "org/name[train] row 7".
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rlhf.errors import ConfigError

Record = Mapping[str, Any]

JSON_LINES = (".jsonl", ".ndjson", ".json")
PARQUET = ".parquet"


def read_records(source: str | Path, split: str = "train", *, field: str = "data.path") -> Iterator[tuple[str, Record]]:
    """Yields the place of each row, and its values by column.

    Args:
        source: a JSONL or Parquet file; a folder that the datasets library wrote or can read; or the name of a data set
            on the Hugging Face hub, as "name" or "name:config".
        split: of a data set or folder; a file has only one.
        field: the dotted path of the setting that named the source, for errors.
    Raises: ConfigError naming the source or the place in it, and the remedy.
    """
    path = Path(source)
    if path.is_file():
        yield from _read_file(path, field)
    elif path.suffix in (*JSON_LINES, PARQUET) or path.is_absolute() or str(source).startswith((".", "~")):
        if not path.is_dir():
            raise ConfigError(
                f"{field} is '{source}': no such file; give a JSONL or Parquet file, or a data set's name"
            )
        yield from _read_data_set(str(source), split, field)
    else:
        yield from _read_data_set(str(source), split, field)


def require_ids(name: str, value: Any, vocab_size: int) -> list[int]:
    """Returns the value of a column of token ids. Raises: ValueError if it is not a list of ids of the vocabulary."""
    if not isinstance(value, list) or not all(type(each) is int for each in value):
        raise ValueError(f'"{name}" is {value!r:.60}; it must be a list of token ids')
    unknown = next((each for each in value if not 0 <= each < vocab_size), None)
    if unknown is not None:
        raise ValueError(f'"{name}" has {unknown}; the tokenizer\'s ids go from 0 to {vocab_size - 1}')
    return value


def require_prompt_ids(record: Record, vocab_size: int) -> list[int]:
    """Returns the column "prompt_ids". Raises: ValueError as require_ids, or if it is empty."""
    ids = require_ids("prompt_ids", record.get("prompt_ids"), vocab_size)
    if not ids:
        raise ValueError('"prompt_ids" is empty; a completion needs a prompt that it answers')
    return ids


def _read_file(path: Path, field: str) -> Iterator[tuple[str, Record]]:
    if path.suffix == PARQUET:
        return _read_parquet(path, field)
    if path.suffix in JSON_LINES:
        return read_json_lines(path, field)
    raise ConfigError(
        f"{field} is '{path}': files of type '{path.suffix}' are not read; give one that ends in .jsonl or .parquet"
    )


def read_json_lines(path: Path, field: str) -> Iterator[tuple[str, Record]]:
    """Yields the place and the object of each line of a JSONL file; skips blank lines.

    Args: path: the file; field: the dotted path of the setting that named it, for errors.
    Raises: ConfigError naming the file, or the place of what is no object.
    """
    try:
        # Lines end at "\n" alone: str.splitlines would also cut at U+2028 inside a text.
        with path.open(encoding="utf-8", newline="\n") as file:
            yield from parse_json_lines(file, str(path))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{field} is '{path}': not UTF-8: {error}; save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{field} is '{path}': cannot be read: {error.strerror}") from None


def parse_json_lines(lines: Iterable[str], name: str) -> Iterator[tuple[str, Record]]:
    """Yields the place, "name:line", and the object of each line that is not blank. Raises: ConfigError."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{name}:{number}"
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{place}: not JSON: {error}; each line must be one object") from None
        if not isinstance(value, dict):
            raise ConfigError(f"{place}: a {type(value).__name__}, not an object; each line must be one object")
        yield place, value


def _read_parquet(path: Path, field: str) -> Iterator[tuple[str, Record]]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise _missing_library(field, str(path)) from None
    try:
        number = 0
        for batch in parquet.ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield f"{path} row {number}", row
    except (OSError, ArrowException) as error:
        raise ConfigError(f"{field} is '{path}': cannot be read as Parquet: {error}") from None


def _read_data_set(source: str, split: str, field: str) -> Iterator[tuple[str, Record]]:
    data_set = _load_data_set(source, split, field)
    for number, row in enumerate(data_set, start=1):
        yield f"{source}[{split}] row {number}", row


def _load_data_set(source: str, split: str, field: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise _missing_library(field, source) from None
    try:
        if Path(source).is_dir() and any(
            (Path(source) / name).is_file() for name in ("state.json", "dataset_dict.json")
        ):
            return _split_of(datasets.load_from_disk(source), split, source, field)
        name, _, config = (source, "", "") if Path(source).is_dir() else source.partition(":")
        return datasets.load_dataset(name, config or None, split=split)
    except (OSError, ValueError) as error:
        # The library's own errors are among them: no such data set, no connection, no such config or split.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"{field} is '{source}' (split '{split}'), which is no file here and cannot be loaded as a data set: "
            f"{reason}; check name, config and split, or fetch it where there is a network and give its files"
        ) from None


def _split_of(loaded: Any, split: str, source: str, field: str) -> Any:
    """Returns a split of a folder that save_to_disk wrote; a folder with one data set has only one split."""
    if not hasattr(loaded, "keys"):
        return loaded
    if split not in loaded:
        raise ConfigError(f"{field} is '{source}': no split '{split}' in it; it has {', '.join(sorted(loaded))}")
    return loaded[split]


def _missing_library(field: str, source: str) -> ConfigError:
    return ConfigError(
        f"{field} is '{source}', which needs the datasets library: pip install 'rlhf-services[trainer]', or give JSONL"
    )


def no_row_left(
    source: str | Path, rows: str, skipped: Mapping[str, int], max_tokens: int, *, more: str, field: str = "data.path"
) -> ConfigError:
    """Returns the error for a source without a usable row.

    Args:
        source, field: as in read_records.
        rows: what a row is called, such as "pair".
        skipped: number of rows left out, by reason.
        max_tokens: the limit that applied.
        more: what to give more of, such as "preferences".
    """
    limit = f"{field.rpartition('.')[0]}.max_tokens"
    reasons = ", ".join(f"{count} left out for {reason}" for reason, count in sorted(skipped.items()))
    return ConfigError(
        f"{field} is '{source}': no {rows} left ({reasons or 'it is empty'}; {limit} is {max_tokens}); "
        f"give more {more}, or raise {limit}"
    )
