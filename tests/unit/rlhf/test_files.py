"""Writing whole or not at all, and in an order that outlives a power failure."""

import os
from pathlib import Path

import pytest

from rlhf.files import put_in_place, whole, write_whole


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_file_is_replaced_at_the_end_and_not_before(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_whole(target, "old")
    with whole(target) as partial:
        partial.write_text("new")
        assert target.read_text() == "old"
    assert contents(tmp_path) == {"a.json": "new"}


def test_a_folder_appears_with_all_that_is_in_it(tmp_path: Path) -> None:
    with whole(tmp_path / "model") as partial:
        (partial / "sub").mkdir(parents=True)
        (partial / "sub" / "weights").write_text("w")
        assert not (tmp_path / "model").exists()
    assert contents(tmp_path) == {"model/sub/weights": "w"}


def fail(target: Path, error: BaseException) -> None:
    with whole(target) as partial:
        partial.mkdir()
        (partial / "half").write_text("half")
        raise error


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("name", ["a.json", "model"])
def test_after_a_failure_all_is_as_before(tmp_path: Path, name: str, error: BaseException) -> None:
    write_whole(tmp_path / "a.json", "old")
    with pytest.raises(type(error)):
        fail(tmp_path / name, error)
    assert contents(tmp_path) == {"a.json": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_what_a_killed_process_left_is_not_mixed_in(tmp_path: Path) -> None:
    left = tmp_path / ".model.partial"
    left.mkdir()
    (left / "stale").write_text("s")
    with whole(tmp_path / "model") as partial:
        partial.mkdir()
        (partial / "fresh").write_text("f")
    assert contents(tmp_path) == {"model/fresh": "f"}


def test_a_folder_with_something_in_it_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").write_text("mine")
    with pytest.raises(OSError, match="not empty"), whole(tmp_path / "model") as partial:
        partial.mkdir()
    assert contents(tmp_path) == {"model/mine": "mine"}


def test_all_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(number: int) -> None:
        order.append(os.readlink(f"/proc/self/fd/{number}"))
        fsync(number)

    def noted_replace(path: Path, target: Path) -> None:
        order.append(f"to {target.name}")
        replace(path, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    made = tmp_path / "made"
    made.mkdir()
    (made / "weights").write_text("w")
    put_in_place(made, tmp_path / "model")
    assert order == [f"{made}/weights", str(made), "to model", str(tmp_path)]
