import os
from dataclasses import replace

import pytest

from rlhf.errors import InvalidRequestError
from rlhf.weights import WeightsManifest
from services.policy.weights.full import FullPayload
from services.policy.weights.memory_file import aligned_offsets
from services.policy.weights.served_copy import check_manifest
from tests.unit.services.policy.fake_engine import manifest_of

TENSORS = {"b": bytes(range(20)), "a": bytes(range(100, 180)), "c": b"last"}
MANIFEST = manifest_of(TENSORS)
PAYLOAD = b"".join(TENSORS.values())  # 20 + 80 + 4 = 104 bytes


@pytest.fixture
def payload():
    payload = FullPayload(MANIFEST)
    yield payload
    payload.file.close()


def test_every_tensor_begins_at_a_multiple_of_64_bytes():
    # 20 bytes, so the second begins at 64; it ends at 144, so the third begins at 192; 4 more bytes.
    assert aligned_offsets(MANIFEST.tensors) == ((0, 64, 192), 196)


@pytest.mark.parametrize("chunk_bytes", [1, 7, 20, 21, 103, 104])
def test_a_payload_in_chunks_of_any_size_is_staged_whole(payload, chunk_bytes):
    for start in range(0, len(PAYLOAD), chunk_bytes):
        payload.write(start, PAYLOAD[start : start + chunk_bytes])
    staged = payload.commit(7)
    with open(staged.path, "rb") as file:
        data = file.read()
    assert len(data) == staged.num_bytes == 196
    assert [data[at : at + 4] for at in staged.offsets] == [PAYLOAD[0:4], PAYLOAD[20:24], b"last"]
    assert data[64:144] == TENSORS["a"]
    assert staged.policy_version == 7


def test_a_corrupted_tensor_is_named_as_soon_as_it_is_complete(payload):
    payload.write(0, PAYLOAD[:50])
    with pytest.raises(InvalidRequestError, match="tensor 'a' arrived with digest"):
        payload.write(50, b"x" * 50)


@pytest.mark.parametrize(
    ("offset", "data", "message"),
    [
        (4, b"data", r"chunk\.offset_bytes is 4, expected 0"),
        (0, b"", r"chunk\.data at offset_bytes 0 is empty"),
        (0, PAYLOAD + b"x", r"more than the 104 bytes"),
    ],
)
def test_a_chunk_that_is_out_of_order_empty_or_too_long_is_refused(payload, offset, data, message):
    with pytest.raises(InvalidRequestError, match=message):
        payload.write(offset, data)


def test_a_commit_of_a_short_payload_says_where_it_stopped(payload):
    payload.write(0, PAYLOAD[:30])
    with pytest.raises(InvalidRequestError, match="after 30 of 104 bytes, inside tensor 'a'"):
        payload.commit(1)


def test_closing_frees_the_memory(payload):
    payload.write(0, PAYLOAD)
    path = payload.commit(1).path
    payload.file.close()
    assert not os.path.exists(path)


def changed(**changes: object) -> WeightsManifest:
    """MANIFEST with its tensor 'a' changed."""
    return WeightsManifest(tuple(replace(info, **changes) if info.name == "a" else info for info in MANIFEST.tensors))


@pytest.mark.parametrize(
    ("pushed", "message"),
    [
        (changed(shape=(4, 5)), r"tensor 'a' is F32 \[4, 5\]; the served model has F32 \[20\] there"),
        (changed(dtype="BF16"), r"tensor 'a' is BF16 \[20\]; the served model has F32 \[20\] there"),
        (changed(dtype="int4"), "tensor 'a' is int4"),
        (changed(name="z"), "tensors has 'z', which the served model does not have"),
        (changed(name="b"), "tensors names 'b' twice"),
        (WeightsManifest(MANIFEST.tensors[2:]), "tensors lacks 'b' and 1 others"),
        (WeightsManifest(()), "tensors lacks 'b' and 2 others"),
    ],
)
def test_a_manifest_that_is_not_the_served_models_is_refused_and_the_tensor_named(pushed, message):
    with pytest.raises(InvalidRequestError, match=message):
        check_manifest(pushed, MANIFEST, pushed.digest)


def test_the_order_of_tensors_is_free_but_the_digest_of_the_whole_is_checked():
    reordered = WeightsManifest(MANIFEST.tensors[::-1])
    check_manifest(reordered, MANIFEST, MANIFEST.digest)
    with pytest.raises(InvalidRequestError, match="weights_digest is 'wrong'"):
        check_manifest(reordered, MANIFEST, "wrong")
