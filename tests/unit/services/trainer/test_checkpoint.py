"""Checkpoints: whole or not at all, the last n, and the same next step after a restart."""

import json
import math
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from rlhf.errors import ConfigError, RunError
from rlhf.learning.config import OptimizerConfig
from rlhf.learning.trained_model import TrainedModel
from rlhf.models.loading import load_policy, load_tokenizer
from services.trainer.config.sections import CheckpointConfig
from services.trainer.state.checkpoint import CheckpointFolder, read_state, require_same_model, write_directory
from tests.support.tiny_model import make_tiny_model


def write_model(path: Path) -> None:
    (path / "policy").mkdir()
    (path / "policy" / "model.safetensors").write_bytes(b"12345")


@contextmanager
def at_most(num_bytes: int) -> Iterator[None]:
    """Lets no file grow beyond a size: the nearest to a full disk that needs no disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def make_folder(tmp_path: Path, steps: list[int], **keep: Any) -> CheckpointFolder:
    folder = CheckpointFolder(tmp_path, CheckpointConfig(**{"keep_last": 9, **keep}))
    for step in steps:
        folder.save(step, {"policy_version": step + 1}, write_model)
    return folder


def kept_steps(folder: CheckpointFolder) -> list[int]:
    return [int(path.name.removeprefix("step-")) for path in sorted(folder.path.iterdir())]


def test_a_checkpoint_holds_its_state_and_size_and_digest_of_every_file(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, [3])
    folder.save(12, {"policy_version": 13}, write_model, {"loss": 0.5, "kl": math.nan})
    newest = folder.newest()
    assert newest == tmp_path / "checkpoints" / "step-000012"
    assert read_state(newest) == {
        "format_version": 2,
        "step": 12,
        "policy_version": 13,
        "metrics": {"loss": 0.5},  # JSON has no NaN
        "files": {"policy/model.safetensors": {"bytes": 5, "blake3": blake3(b"12345").hexdigest()}},
    }


def test_only_the_last_are_kept(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, [1, 2, 3, 10], keep_last=2)
    assert kept_steps(folder) == [3, 10]


def test_every_mth_is_kept_for_good(tmp_path: Path) -> None:
    assert kept_steps(make_folder(tmp_path, [1, 2, 3, 4, 5, 6, 7], keep_last=1, keep_every=3)) == [3, 6, 7]


@pytest.mark.parametrize(("order", "kept"), [("max", [2, 4]), ("min", [3, 4])])
def test_the_best_is_kept(tmp_path: Path, order: str, kept: list[int]) -> None:
    folder = make_folder(tmp_path, [], keep_last=1, keep_best="reward", keep_best_order=order)
    for step, reward in enumerate([0.0, 2.0, -1.0], 1):
        folder.save(step, {}, write_model, {"reward": reward})
    folder.save(4, {}, write_model, {"reward": math.inf})  # is no best
    assert kept_steps(folder) == kept


def test_the_configuration_says_what_is_kept(tmp_path: Path) -> None:
    config = CheckpointConfig(keep_last=1, keep_every=2, keep_best="loss", keep_best_order="min")
    folder = CheckpointFolder(tmp_path, config)
    for step, loss in enumerate([0.1, 0.4, 0.3, 0.2, 0.5], 1):
        folder.save(step, {}, write_model, {"loss": loss})
    assert kept_steps(folder) == [1, 2, 4, 5]


def test_without_checkpoints_there_is_no_newest(tmp_path: Path) -> None:
    assert CheckpointFolder(tmp_path, CheckpointConfig()).newest() is None


@pytest.mark.parametrize("damage", ["marker", "file", "bytes", "torn marker", "bit"])
def test_a_checkpoint_that_is_not_whole_is_passed_over(tmp_path: Path, damage: str) -> None:
    folder = make_folder(tmp_path, [1, 2])
    broken = folder.path / "step-000002"
    if damage == "marker":
        (broken / "state.json").unlink()
    elif damage == "file":
        (broken / "policy" / "model.safetensors").unlink()
    elif damage == "bytes":
        (broken / "policy" / "model.safetensors").write_bytes(b"123")
    elif damage == "bit":
        (broken / "policy" / "model.safetensors").write_bytes(b"12344")
    else:
        (broken / "state.json").write_text('{"step": 2')
    assert folder.newest() == folder.path / "step-000001"
    folder.save(2, {}, write_model)  # and is written anew when the run gets there again
    assert folder.newest() == broken


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path, [1])
    marker = folder.path / "step-000001" / "state.json"
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "format_version": 99}))
    with pytest.raises(ConfigError, match="format_version 99, this trainer reads 2"):
        folder.newest()


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "final"
    write_directory(target, lambda path: (path / "a").write_text("old") and None)

    def fill_the_disk(path: Path) -> None:
        (path / "a").write_text("new")
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match=r"could not write .*final: .*No space left on device; free some space"):
        write_directory(target, fill_the_disk)
    assert (target / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_a_full_disk_leaves_older_checkpoints_as_they_were(tmp_path: Path, tiny_model_path: Path) -> None:
    policy, tokenizer = load_policy(tiny_model_path, dtype="float32"), load_tokenizer(tiny_model_path)
    model = TrainedModel("policy", policy, OptimizerConfig(), total_steps=1)
    folder = make_folder(tmp_path, [1])

    def write(path: Path) -> None:
        model.save_state(path / "policy_state")  # half a megabyte
        model.save_weights(path / "policy", tokenizer)

    with at_most(100_000), pytest.raises(RunError, match=r"could not write .*step-000002: .*; free some space, then"):
        folder.save(2, {}, write)
    assert kept_steps(folder) == [1]
    assert folder.newest() == folder.path / "step-000001"
    folder.save(2, {}, write)
    assert folder.newest() == folder.path / "step-000002"


def test_a_directory_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "final"
    write_directory(target, lambda path: (path / "old").write_text("") and None)
    write_directory(target, lambda path: (path / "new").write_text("") and None)
    assert [path.name for path in target.iterdir()] == ["new"]


def test_a_checkpoint_of_another_model_is_refused_by_what_differs(tmp_path: Path, tiny_model_path: Path) -> None:
    require_same_model(tiny_model_path, make_tiny_model(tmp_path / "same", seed=5), "model.path")
    other = tmp_path / "other"
    shutil.copytree(tiny_model_path, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "hidden_size": 128}))
    with pytest.raises(ConfigError, match=r"another model: its hidden_size is 64, at model.path .* it is 128"):
        require_same_model(tiny_model_path, other, "model.path")
