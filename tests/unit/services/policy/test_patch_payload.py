import struct
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from rlhf.errors import InvalidRequestError
from rlhf.models.sparse_patch import TensorPatch, diff
from rlhf.weights import PatchPart, PushHeader
from services.policy.weights.memory_file import WeightsFile
from services.policy.weights.patch import PatchPayload
from tests.unit.services.policy.fake_engine import LOADED, manifest_of, read_patch, read_staged

# LOADED has b = [0, 0] and a = [x, x, x], where x has the bytes 01 01 01 01. The header's order is the other one.
X = struct.unpack("<f", b"\x01" * 4)[0]
NEW = {"a": struct.pack("<3f", X, 1.5, -2.0), "b": LOADED["b"]}


def patch_of(name: str, new: dict[str, bytes]) -> TensorPatch:
    def tensor(data: bytes) -> torch.Tensor:
        return torch.frombuffer(bytearray(data), dtype=torch.float32)

    return diff(tensor(LOADED[name]), tensor(new[name]))


PATCH = patch_of("a", NEW)
HEADER = PushHeader(
    policy_version=5,
    manifest=manifest_of(NEW),
    weights_digest=manifest_of(NEW).digest,
    encoding="sparse_patch",
    parts=(PATCH.part, PatchPart(0, 0)),
)


@pytest.fixture
def served() -> Iterator[WeightsFile]:
    file = WeightsFile()
    for info in manifest_of(LOADED).tensors:
        file.add(info, memoryview(LOADED[info.name]))
    yield file
    file.close()


@pytest.mark.parametrize("chunk_bytes", [1, 7, len(PATCH.frame)])
def test_a_patch_in_pieces_changes_the_copy_and_says_what_it_changed(served, chunk_bytes):
    payload = PatchPayload(HEADER, served)
    for start in range(0, len(PATCH.frame), chunk_bytes):
        payload.write(start, PATCH.frame[start : start + chunk_bytes])
    staged = payload.commit(5)
    assert read_patch(staged) == {"a": ([1, 2], [1.5, -2.0])}
    assert staged.policy_version == staged.whole.policy_version == 5
    assert read_staged(staged.whole) == NEW
    assert staged.whole.manifest.digest == HEADER.weights_digest
    assert payload.changed_fraction == 2 / 5
    assert payload.read(2, 3) == PATCH.frame[2:5]
    payload.accept()
    payload.close()
    assert served.manifest.digest == HEADER.weights_digest


def test_undoing_gives_the_copy_back_bit_for_bit(served):
    payload = PatchPayload(HEADER, served)
    payload.write(0, PATCH.frame)
    assert read_staged(served.staged(0)) == NEW
    payload.undo()
    payload.close()
    assert read_staged(served.staged(0)) == LOADED
    assert served.manifest == manifest_of(LOADED)


def test_a_result_with_another_digest_is_refused_and_can_be_undone(served):
    other = manifest_of({**NEW, "a": struct.pack("<3f", X, 1.5, 2.0)})
    payload = PatchPayload(replace(HEADER, manifest=other), served)
    with pytest.raises(InvalidRequestError, match="tensor 'a' arrived with digest"):
        payload.write(0, PATCH.frame)
    payload.undo()
    assert read_staged(served.staged(0)) == LOADED


def test_an_empty_patch_changes_the_version_alone(served):
    manifest = manifest_of(LOADED)
    header = replace(HEADER, manifest=manifest, weights_digest=manifest.digest, parts=(PatchPart(0, 0),) * 2)
    staged = PatchPayload(header, served).commit(6)
    assert (staged.policy_version, staged.tensors, staged.num_bytes) == (6, (), 0)
    assert read_staged(staged.whole) == LOADED


@pytest.mark.parametrize(
    ("offset", "data", "message"),
    [
        (4, b"data", r"chunk\.offset_bytes is 4, expected 0"),
        (0, b"", r"chunk\.data at offset_bytes 0 is empty"),
        (0, PATCH.frame + b"x", r"more than the \d+ bytes"),
        (0, bytes(len(PATCH.frame)), "tensor 'a' has a frame that zstd does not unpack"),
    ],
)
def test_a_piece_that_cannot_be_of_the_patch_is_refused(served, offset, data, message):
    payload = PatchPayload(HEADER, served)
    with pytest.raises(InvalidRequestError, match=message):
        payload.write(offset, data)
    assert read_staged(served.staged(0)) == LOADED


def test_a_commit_of_a_short_patch_says_where_it_stopped(served):
    payload = PatchPayload(HEADER, served)
    payload.write(0, PATCH.frame[:9])
    with pytest.raises(InvalidRequestError, match=r"after 9 of \d+ bytes, inside the patch of tensor 'a'"):
        payload.commit(5)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (PatchPart(4, 30), "tensor 'a' has a changed_count of 4; it has 3 elements"),
        (PatchPart(-1, 30), "a changed_count of -1"),
        (PatchPart(2, 0), "2 changes in patch_bytes of 0"),
        # 2 changes of 4 + 4 bytes, and 1024 that a frame may need beside its content.
        (PatchPart(2, 1041), "2 changes in patch_bytes of 1041; that many take at most 1040"),
        (PatchPart(0, 1), "0 changes in patch_bytes of 1; that many take at most 0"),
        (PatchPart(0, 0), "a changed_count of 0, but another digest than in the base"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused_before_anything_comes(served, part, message):
    with pytest.raises(InvalidRequestError, match=message):
        PatchPayload(replace(HEADER, parts=(part, PatchPart(0, 0))), served)
