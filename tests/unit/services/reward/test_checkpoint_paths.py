"""What LoadModel may read: only below its roots, whatever links say, and nothing that could be code."""

import json
from pathlib import Path

import pytest

from rlhf.errors import InvalidRequestError, PreconditionError
from services.reward.loading import resolve_checkpoint


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "models"
    make_checkpoint(root / "good")
    return root


def make_checkpoint(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def refuses(path: object, *roots: Path, match: str) -> None:
    with pytest.raises(InvalidRequestError, match=match):
        resolve_checkpoint(str(path), [str(root) for root in roots])


def test_a_folder_below_a_root_is_returned_with_its_links_followed(root: Path) -> None:
    (root / "latest").symlink_to("good")
    good = (root / "good").resolve()
    assert resolve_checkpoint(str(root / "good"), ["/nowhere", str(root)]) == good
    assert resolve_checkpoint(str(root / "latest"), [str(root)]) == good
    assert resolve_checkpoint(f"{root}/x/../good/", [str(root)]) == good
    assert resolve_checkpoint(str(good), [str(good)]) == good


def test_a_root_that_is_a_link_counts_as_what_it_leads_to(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    assert resolve_checkpoint(str(root / "good"), [str(tmp_path / "link")]) == (root / "good").resolve()


def test_without_roots_nothing_may_be_loaded(root: Path) -> None:
    with pytest.raises(PreconditionError, match=r"models\.allowed_roots is empty"):
        resolve_checkpoint(str(root / "good"), [])


def test_what_lies_outside_is_refused_and_nothing_is_told_of_it(root: Path, tmp_path: Path) -> None:
    outside = make_checkpoint(tmp_path / "outside")
    make_checkpoint(tmp_path / "models-2")  # begins like the root's name
    (root / "escape").symlink_to(outside)
    (root / "circle").symlink_to(root / "circle")
    for path in (
        outside,
        tmp_path / "models-2",
        tmp_path / "missing",
        root / "escape",
        root / ".." / "outside",
        root / "circle",
        "/",
    ):
        refuses(path, root, match="does not lead below one of")
    for path in ("", "good", "models/good", f"{root}/good\0", "~/good"):
        refuses(path, root, match="no absolute path")
    refuses(f"/{'x' * 5000}", root, match="does not lead below one of")


def test_a_missing_folder_or_one_without_safetensors_is_named(root: Path) -> None:
    refuses(root / "missing", root, match="no such directory")
    refuses(root / "good" / "config.json", root, match="no such directory")
    (root / "empty").mkdir()
    refuses(root / "empty", root, match=r"holds no \.safetensors file")


@pytest.mark.parametrize(
    "name",
    [
        "pytorch_model.bin",
        "model.pt",
        "model.PTH",
        "optimizer.pkl",
        "modeling_reward.py",
        "sub/deeper/model.bin",
        "lib.so",
        "adapter_config.json",
    ],
)
def test_a_folder_with_code_or_pickles_is_refused_beside_good_weights_too(root: Path, name: str) -> None:
    file = root / "good" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"")
    refuses(root / "good", root, match="only safetensors weights are loaded, never pickles or code")


def test_links_in_the_folder_may_stay_below_the_roots_only(root: Path, tmp_path: Path) -> None:
    # So a cache of the Hugging Face hub looks: links to files beside the folder.
    (root / "blobs").mkdir()
    (root / "blobs" / "abc").write_bytes(b"weights")
    linked = root / "linked"
    linked.mkdir()
    (linked / "model.safetensors").symlink_to("../blobs/abc")
    assert resolve_checkpoint(str(linked), [str(root)]) == linked.resolve()
    (tmp_path / "secret").write_bytes(b"")
    (linked / "config.json").symlink_to(tmp_path / "secret")
    refuses(linked, root, match="'config.json' leads out of models.allowed_roots")


def test_a_link_that_hides_a_pickle_behind_a_good_name_is_refused(root: Path) -> None:
    (root / "weights.bin").write_bytes(b"")
    (root / "good" / "model-2.safetensors").symlink_to("../weights.bin")
    refuses(root / "good", root, match="never pickles or code")


@pytest.mark.parametrize("shard", ["../other/model.safetensors", "/etc/passwd", "model.bin", 5])
def test_an_index_may_name_only_safetensors_of_its_own_folder(root: Path, shard: object) -> None:
    index = root / "good" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model.safetensors", "b": shard}}))
    refuses(root / "good", root, match=r"shards are \.safetensors files in the same folder")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": []}}'])
def test_a_broken_index_is_named(root: Path, content: str) -> None:
    (root / "good" / "model.safetensors.index.json").write_text(content)
    refuses(root / "good", root, match="cannot be read; save it again")


def test_a_folder_that_is_no_checkpoint_is_not_walked_to_its_end(root: Path) -> None:
    for index in range(1001):
        (root / "good" / f"{index}.txt").touch()
    refuses(root / "good", root, match="more than 1000 files")
