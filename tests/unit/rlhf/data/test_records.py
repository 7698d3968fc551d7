"""Rows of files and data sets: each kind is read alike, and every fault is named with its place and its remedy."""

import json
from pathlib import Path

import datasets
import pytest

from rlhf.data.records import read_records
from rlhf.errors import ConfigError

ROWS = [{"prompt": "a", "n": 1}, {"prompt": "b\u2028c", "n": 2}]


def test_json_lines_are_read_with_their_places_and_blank_lines_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([json.dumps(ROWS[0]), "", json.dumps(ROWS[1], ensure_ascii=False)]), encoding="utf-8")
    assert list(read_records(str(path))) == [(f"{path}:1", ROWS[0]), (f"{path}:3", ROWS[1])]


def test_parquet_files_folders_and_saved_data_sets_give_the_same_rows(tmp_path: Path) -> None:
    data_set = datasets.Dataset.from_list(ROWS)
    data_set.to_parquet(tmp_path / "rows.parquet")
    data_set.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"test": data_set}).save_to_disk(str(tmp_path / "splits"))
    assert list(read_records(tmp_path / "rows.parquet")) == [
        (f"{tmp_path / 'rows.parquet'} row {number}", row) for number, row in enumerate(ROWS, start=1)
    ]
    assert [row for _, row in read_records(str(tmp_path / "one"))] == ROWS
    assert list(read_records(str(tmp_path / "splits"), "test"))[1] == (f"{tmp_path / 'splits'}[test] row 2", ROWS[1])
    with pytest.raises(ConfigError, match=r"data.path is '.*splits': no split 'train' in it; it has test"):
        list(read_records(str(tmp_path / "splits")))


def test_a_folder_of_data_files_is_read_by_the_datasets_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert [row for _, row in read_records(str(tmp_path / "folder"))] == ROWS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}\n{"a": \n', r"rows.jsonl:2: not JSON: .*; each line must be one object"),
        (b"[1, 2]\n", r"rows.jsonl:1: a list, not an object; each line must be one object"),
        (b'{"a": "\xff"}\n', r"data.path is '.*rows.jsonl': not UTF-8: .*; save it as UTF-8"),
    ],
)
def test_a_faulty_line_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        list(read_records(str(path)))


def test_a_source_that_is_not_there_or_cannot_be_read_is_named_with_its_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"sft.data is '.*away.jsonl': no such file; give a JSONL or Parquet file"):
        list(read_records(tmp_path / "away.jsonl", field="sft.data"))
    (tmp_path / "rows.csv").write_text("a,b\n")
    with pytest.raises(ConfigError, match=r"files of type '.csv' are not read; give one that ends in .jsonl or"):
        list(read_records(tmp_path / "rows.csv"))
    (tmp_path / "rows.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(ConfigError, match="cannot be read as Parquet"):
        list(read_records(tmp_path / "rows.parquet"))
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with pytest.raises(ConfigError, match=r"data.path is 'org/away:config' \(split 'train'\), which is no file here"):
        list(read_records("org/away:config"))
