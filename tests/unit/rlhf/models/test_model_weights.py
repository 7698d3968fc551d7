"""Weights as named tensors: names, bytes, digests, and loading in place."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rlhf.errors import ConfigError, InvalidRequestError
from rlhf.models.loading import DtypeName, load_policy
from rlhf.models.weights import (
    checkpoint_manifest,
    checkpoint_tensors,
    load_tensors,
    model_manifest,
    tensor_bytes,
    tensor_info,
)
from rlhf.weights import tensor_digest
from tests.support.tiny_model import make_tiny_model


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def policy_path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return make_tiny_model(tmp_path / "policy", tie_word_embeddings=request.param)


def test_names_and_values_are_those_of_the_checkpoint_on_disk(policy_path: Path):
    on_disk = load_file(policy_path / "model.safetensors")
    ours = dict(checkpoint_tensors(load_policy(policy_path, dtype="float32")))
    assert ours.keys() == on_disk.keys()
    assert all(torch.equal(ours[name], on_disk[name]) for name in ours)


def test_listing_a_cpu_model_copies_nothing(policy_path: Path):
    model = load_policy(policy_path, dtype="float32")
    own = model.state_dict()
    assert all(tensor.data_ptr() == own[name].data_ptr() for name, tensor in checkpoint_tensors(model))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_manifest_of_the_files_is_that_of_the_loaded_model(policy_path: Path, dtype: DtypeName):
    from_files = checkpoint_manifest(policy_path, dtype)
    from_model = model_manifest(load_policy(policy_path, dtype=dtype))
    assert from_files.digest == from_model.digest
    assert from_files.num_bytes == from_model.num_bytes


def test_a_tied_duplicate_on_disk_does_not_change_the_manifest(tmp_path: Path):
    path = make_tiny_model(tmp_path)
    expected = checkpoint_manifest(path, "float32").digest
    tensors = load_file(path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    assert checkpoint_manifest(path, "float32").digest == expected
    assert model_manifest(load_policy(path, dtype="float32")).digest == expected


def test_a_sharded_checkpoint_has_the_same_manifest(tmp_path: Path, tiny_model_path: Path):
    load_policy(tiny_model_path, dtype="float32").save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert checkpoint_manifest(tmp_path, "bfloat16").digest == checkpoint_manifest(tiny_model_path, "bfloat16").digest


def test_names_that_transformers_changes_on_loading_are_followed(tmp_path: Path, tiny_model_path: Path):
    # A checkpoint of the bare backbone: transformers adds the prefix 'model.', so the files alone do not match.
    path = make_tiny_model(tmp_path)
    tensors = {name.removeprefix("model."): t for name, t in load_file(path / "model.safetensors").items()}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    manifest = checkpoint_manifest(path, "float32")
    assert manifest.digest == model_manifest(load_policy(path, dtype="float32")).digest


def test_a_manifest_of_no_model_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="no such directory"):
        checkpoint_manifest(tmp_path / "absent", "float32")


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (torch.tensor([1.0, -2.0]), "0000803f000000c0"),  # 0x3f800000, 0xc0000000, low byte first
        (torch.tensor([[1.0], [-2.0]], dtype=torch.bfloat16), "803f00c0"),  # the upper halves of the same
        (torch.tensor(1.0, dtype=torch.bfloat16), "803f"),  # a scalar
    ],
)
def test_bytes_are_raw_little_endian(tensor: Tensor, expected: str):
    assert tensor_bytes(tensor).hex() == expected
    info = tensor_info("x", tensor)
    assert info.digest == tensor_digest(bytes.fromhex(expected))
    assert (info.shape, info.num_bytes) == (tuple(tensor.shape), len(expected) // 2)


def test_bytes_are_not_a_copy():
    tensor = torch.zeros(2)
    data = tensor_bytes(tensor)
    tensor[0] = 1.0
    assert data.hex() == "0000803f00000000"


def test_a_type_that_cannot_be_served_is_refused():
    with pytest.raises(ConfigError, match=r"tensor x is torch\.int64; weights are served as BF16, F16, F32"):
        tensor_info("x", torch.zeros(2, dtype=torch.int64))


def test_loading_gives_the_other_models_weights_in_place(policy_path: Path, tmp_path: Path):
    model = load_policy(policy_path, dtype="float32")
    tied = model.lm_head.weight is model.get_input_embeddings().weight
    other_path = make_tiny_model(tmp_path / "other", seed=1, tie_word_embeddings=tied)
    other = load_policy(other_path, dtype="float32")
    addresses = [parameter.data_ptr() for parameter in model.parameters()]
    load_tensors(model, checkpoint_tensors(other))
    assert model_manifest(model).digest == model_manifest(other).digest
    assert [parameter.data_ptr() for parameter in model.parameters()] == addresses
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(model(input_ids=ids).logits, other(input_ids=ids).logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("model.norm.weight"), r"lacks 1 of the model's \d+, 'model\.norm\.weight'"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), "'extra', which the model has not"),
        (lambda tensors: tensors.update({"model.norm.weight": torch.zeros(3)}), r"shape \[3\]; the model's has \[64\]"),
        (
            lambda tensors: tensors.update({"model.norm.weight": torch.zeros(64).bfloat16()}),
            r"is torch\.bfloat16; the model serves torch\.float32",
        ),
    ],
    ids=["missing", "extra", "misshapen", "another type"],
)
def test_tensors_that_do_not_fit_change_nothing(tiny_model_path: Path, change, message: str):
    model = load_policy(tiny_model_path, dtype="float32")
    before = model_manifest(model).digest
    tensors = {name: tensor + 1 for name, tensor in checkpoint_tensors(model)}
    change(tensors)
    with pytest.raises(InvalidRequestError, match=message):
        load_tensors(model, tensors.items())
    assert model_manifest(model).digest == before


def test_a_tensor_sent_twice_is_refused(tiny_model_path: Path):
    model = load_policy(tiny_model_path, dtype="float32")
    tensors = list(checkpoint_tensors(model))
    with pytest.raises(InvalidRequestError, match=r"'model\.norm\.weight' twice"):
        load_tensors(model, [*tensors, ("model.norm.weight", torch.zeros(64))])
