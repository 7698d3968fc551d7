"""Snapshots of the weights: what is in them, what they share, and the patches between them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rlhf.learning.config import LoraConfig, OptimizerConfig
from rlhf.learning.snapshot import WeightsSnapshot, take_snapshot
from rlhf.learning.trained_model import TrainedModel
from rlhf.models.loading import load_policy
from rlhf.models.policy_model import PolicyModel
from rlhf.models.sparse_patch import decode, new_values
from rlhf.models.weights import model_manifest
from rlhf.weights import PatchPart, tensor_digest
from tests.support.tiny_model import make_tiny_model

EMBEDDING = "model.embed_tokens.weight"
NORM = "model.norm.weight"


def make_model(path: Path, *, lora: LoraConfig | None = None) -> TrainedModel:
    model = load_policy(path, dtype="bfloat16")
    head = nn.Linear(64, 1, bias=False, dtype=model.dtype)
    return TrainedModel("policy", PolicyModel(model, head), OptimizerConfig(), total_steps=9, lora=lora)


@pytest.fixture
def model(tiny_model_path: Path) -> TrainedModel:
    return make_model(tiny_model_path)


def parameter(model: TrainedModel, name: str) -> Tensor:
    return dict(model.weights())[name]


def change(model: TrainedModel, name: str, index: int) -> None:
    """Moves one element to its neighbour."""
    parameter(model, name).view(-1).view(torch.int16)[index] += 1


def applied(tensors: list[Tensor], snapshot: WeightsSnapshot) -> list[Tensor]:
    """What a receiver that has `tensors` makes of a snapshot's patch."""
    header = snapshot.header("sparse_patch")
    payload = b"".join(bytes(piece) for piece in snapshot.payload("sparse_patch"))
    assert len(payload) == header.payload_bytes
    result, offset = [], 0
    for info, part, old in zip(header.manifest.tensors, header.parts, tensors, strict=True):
        frame = payload[offset : offset + part.num_bytes]
        offset += part.num_bytes
        indices, steps = decode(part, frame, info.dtype, old.numel(), name=info.name)
        new = old.clone().view(-1)
        new[indices] = new_values(new[indices], steps)
        result.append(new.view(old.shape))
    return result


def digests(tensors: list[Tensor]) -> list[str]:
    return [tensor_digest(tensor.reshape(-1).view(torch.uint8).numpy().data) for tensor in tensors]


def test_a_snapshot_has_what_a_checkpoint_has_once_and_nothing_else(tmp_path: Path) -> None:
    for tied in (True, False):
        path = make_tiny_model(tmp_path / str(tied), tie_word_embeddings=tied)
        snapshot = take_snapshot(make_model(path), 1, None, patches=True)
        on_disk = load_file(path / "model.safetensors")
        names = [info.name for info in snapshot.manifest.tensors]
        # Neither the value head, nor float32 masters and moments of the optimizer, nor a tied projection.
        assert sorted(names) == sorted(on_disk)
        assert ("lm_head.weight" in names) is not tied
        assert snapshot.manifest.num_bytes == 2 * sum(tensor.numel() for tensor in on_disk.values())
        assert snapshot.digest == snapshot.manifest.digest == model_manifest(load_policy(path, dtype="bfloat16")).digest
        for name, tensor in zip(names, snapshot.tensors, strict=True):
            assert torch.equal(tensor, on_disk[name].to(torch.bfloat16))


def test_a_buffer_is_sent_if_a_checkpoint_would_have_it(model: TrainedModel) -> None:
    inner = model.module.model
    inner.model.register_buffer("scale", torch.ones(3, dtype=torch.bfloat16))
    inner.model.register_buffer("scratch", torch.ones(3, dtype=torch.bfloat16), persistent=False)
    first = take_snapshot(model, 1, None, patches=True)
    names = [info.name for info in first.manifest.tensors]
    assert "model.scale" in names
    assert "model.scratch" not in names
    assert not any("inv_freq" in name for name in names)
    inner.model.scale[2] = 7
    patch = take_snapshot(model, 2, first, patches=True).patch
    assert patch is not None
    assert patch.parts[names.index("model.scale")].changed_count == 1
    assert patch.num_changed == 1


def test_a_tied_weight_that_changes_is_sent_once(model: TrainedModel) -> None:
    first = take_snapshot(model, 1, None, patches=True)
    with torch.no_grad():
        model.module.model.lm_head.weight[5] *= 2  # the embedding too
    second = take_snapshot(model, 2, first, patches=True)
    assert second.patch is not None
    assert second.patch.num_changed == 64
    assert len(second.patch.frames) == 1


def test_a_snapshot_does_not_change_when_the_model_does(model: TrainedModel) -> None:
    snapshot = take_snapshot(model, 1, None, patches=True)
    before = digests(list(snapshot.tensors))
    for _, tensor in model.weights():
        tensor.zero_()
    assert digests(list(snapshot.tensors)) == before == [info.digest for info in snapshot.manifest.tensors]


def test_only_what_changed_is_copied_and_sent(model: TrainedModel) -> None:
    first = take_snapshot(model, 3, None, patches=True)
    assert first.patch is None
    assert first.changed_fraction is None
    change(model, NORM, 63)
    change(model, NORM, 0)
    second = take_snapshot(model, 4, first, patches=True)
    at = [info.name for info in second.manifest.tensors].index(NORM)
    shared = [a is b for a, b in zip(first.tensors, second.tensors, strict=True)]
    assert shared == [index != at for index in range(len(shared))]
    patch = second.patch
    assert patch is not None
    assert (patch.base_policy_version, patch.base_digest) == (3, first.digest)
    assert patch.num_changed == 2
    assert [part for part in patch.parts if part.changed_count] == [PatchPart(2, len(patch.frames[0]))]
    assert second.changed_fraction == 2 / sum(tensor.numel() for tensor in second.tensors)
    assert digests(applied(list(first.tensors), second)) == [info.digest for info in second.manifest.tensors]


def test_a_version_without_a_change_is_a_patch_without_bytes(model: TrainedModel) -> None:
    first = take_snapshot(model, 1, None, patches=True)
    second = take_snapshot(model, 2, first, patches=True)
    assert second.digest == first.digest
    assert second.header("sparse_patch").payload_bytes == 0
    assert list(second.payload("sparse_patch")) == []
    assert second.changed_fraction == 0.0
    assert second.cheaper_for((1, first.digest), takes_patches=True) == "sparse_patch"


def test_after_two_hundred_patches_the_receiver_has_the_trainers_digest(model: TrainedModel) -> None:
    torch.manual_seed(0)
    snapshot = take_snapshot(model, 1, None, patches=True)
    received = [tensor.clone() for tensor in snapshot.tensors]
    for version in range(2, 202):
        with torch.no_grad():
            for _, tensor in model.weights():
                if torch.rand(()) < 0.4:
                    tensor += torch.randn_like(tensor) * 0.1 * (torch.rand_like(tensor) < torch.rand(()) ** 3)
        snapshot = take_snapshot(model, version, snapshot, patches=True)
        received = applied(received, snapshot)
    manifest = model_manifest(model.module.model)
    assert digests(received) == [info.digest for info in manifest.tensors]
    assert snapshot.digest == manifest.digest


def test_headers_say_what_follows(model: TrainedModel) -> None:
    first = take_snapshot(model, 1, None, patches=True)
    change(model, EMBEDDING, 9)
    second = take_snapshot(model, 2, first, patches=True)
    full = second.header("full")
    assert (full.encoding, full.policy_version, full.weights_digest) == ("full", 2, second.digest)
    assert (full.base_policy_version, full.base_weights_digest, full.parts) == (0, "", ())
    assert full.relay_targets == ()
    assert sum(len(piece) for piece in second.payload("full")) == full.payload_bytes == second.manifest.num_bytes
    patch = second.header("sparse_patch")
    assert (patch.base_policy_version, patch.base_weights_digest) == (1, first.digest)
    assert len(patch.parts) == len(patch.manifest.tensors)
    assert patch.manifest is full.manifest
    with pytest.raises(ValueError, match="version 1 has no patch"):
        first.header("sparse_patch")
    with pytest.raises(ValueError, match="version 1 has no patch"):
        next(first.payload("sparse_patch"))


def test_a_patch_goes_only_to_who_has_its_base_and_only_if_it_is_smaller(model: TrainedModel) -> None:
    first = take_snapshot(model, 1, None, patches=True)
    change(model, EMBEDDING, 9)
    second = take_snapshot(model, 2, first, patches=True)
    assert second.cheaper_for((1, first.digest), takes_patches=True) == "sparse_patch"
    assert second.cheaper_for((1, first.digest), takes_patches=False) == "full"
    assert second.cheaper_for((0, first.digest), takes_patches=True) == "full"
    assert second.cheaper_for((1, "other"), takes_patches=True) == "full"
    assert second.cheaper_for(None, takes_patches=True) == "full"
    assert first.cheaper_for((1, first.digest), takes_patches=True) == "full"
    torch.manual_seed(0)
    for _, tensor in model.weights():  # bits at random: no patch is smaller than they are
        tensor.view(torch.int16).random_(-(2**15), 2**15)
    third = take_snapshot(model, 3, second, patches=True)
    assert third.cheaper_for((2, second.digest), takes_patches=True) == "full"


def test_without_patches_nothing_is_compared(model: TrainedModel) -> None:
    first = take_snapshot(model, 1, None, patches=False)
    change(model, NORM, 0)
    second = take_snapshot(model, 2, first, patches=False)
    assert second.patch is None
    assert second.digest == model_manifest(model.module.model).digest


def test_a_model_of_other_tensors_has_no_patch(model: TrainedModel, tmp_path: Path) -> None:
    first = take_snapshot(model, 1, None, patches=True)
    untied = make_model(make_tiny_model(tmp_path, tie_word_embeddings=False))
    assert take_snapshot(untied, 2, first, patches=True).patch is None
    wider = take_snapshot(untied, 2, None, patches=True)
    assert take_snapshot(model, 3, wider, patches=True).patch is None


def test_adapters_are_merged_and_never_shared_with_the_model(tiny_model_path: Path) -> None:
    model = make_model(tiny_model_path, lora=LoraConfig(rank=2, alpha=4))
    first = take_snapshot(model, 1, None, patches=True)
    own = {tensor.data_ptr() for tensor in model.module.state_dict().values()}
    assert own.isdisjoint(tensor.data_ptr() for tensor in first.tensors)
    with torch.no_grad():
        for name, each in model.module.named_parameters():
            if "lora_" in name:
                each += 0.5
    second = take_snapshot(model, 2, first, patches=True)
    assert second.patch is not None
    assert second.patch.num_changed > 0
    assert digests(applied(list(first.tensors), second)) == [info.digest for info in second.manifest.tensors]
