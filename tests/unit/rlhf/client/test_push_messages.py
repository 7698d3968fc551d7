"""The messages of a push, serialised by hand: protobuf reads them as its own."""

from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.client import codec
from rlhf.client.push_messages import CHUNK_BYTES, chunk_message, push_messages
from rlhf.v1 import policy_pb2
from rlhf.weights import PatchPart, PushHeader, TensorInfo, WeightsManifest

HEADER = PushHeader(
    policy_version=7,
    manifest=WeightsManifest((TensorInfo("w", "BF16", (2, 3), "d1"), TensorInfo("b", "BF16", (), "d2"))),
    weights_digest="w7",
    encoding="sparse_patch",
    base_policy_version=6,
    base_weights_digest="w6",
    parts=(PatchPart(1, 20), PatchPart(0, 0)),
    relay_targets=("b:1", "c:1"),
)


def parsed(messages: Iterable[bytes]) -> list[policy_pb2.UpdateWeightsRequest]:
    return [policy_pb2.UpdateWeightsRequest.FromString(each) for each in messages]


@given(st.integers(0, 2**63 - 1), st.lists(st.binary(max_size=300), min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_a_chunk_is_what_protobuf_would_have_written(offset: int, pieces: list[bytes]):
    data = b"".join(pieces) or b"x"
    expected = policy_pb2.UpdateWeightsRequest(chunk=policy_pb2.WeightsChunk(offset_bytes=offset, data=data))
    assert chunk_message(offset, pieces if b"".join(pieces) else [b"x"]) == expected.SerializeToString()


@given(st.lists(st.binary(max_size=40), max_size=30), st.integers(1, 50))
@settings(max_examples=200, deadline=None)
def test_pieces_of_any_size_come_in_full_chunks_but_for_the_last(payload: list[bytes], chunk_bytes: int):
    messages = [
        policy_pb2.UpdateWeightsRequest.FromString(each) for each in push_messages(HEADER, payload, chunk_bytes)
    ]
    assert [each.WhichOneof("part") for each in (messages[0], messages[-1])] == ["header", "commit"]
    assert codec.decode_header(messages[0].header) == HEADER
    chunks = [each.chunk for each in messages[1:-1]]
    assert b"".join(each.data for each in chunks) == b"".join(payload)
    assert [each.offset_bytes for each in chunks] == [chunk_bytes * k for k in range(len(chunks))]
    assert all(len(each.data) == chunk_bytes for each in chunks[:-1])
    assert all(each.data for each in chunks)


def test_a_payload_of_a_few_mebibytes_is_cut_at_the_default_size():
    # 2.5 MiB in one tensor, then 300 frames of 1,000 bytes: 2,921,440 bytes are two chunks of 1,048,576 and 824,288.
    payload = [memoryview(bytes(5 * CHUNK_BYTES // 2)), *[b"f" * 1000] * 300]
    messages = parsed(push_messages(HEADER, payload))
    assert [len(each.chunk.data) for each in messages[1:-1]] == [1_048_576, 1_048_576, 824_288]
