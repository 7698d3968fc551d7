"""Messages of a push as the server parses them: chunks by hand, all else by protobuf."""

import pytest
from google.protobuf.message import DecodeError

from rlhf.client.push_messages import ChunkView, chunk_message, parse_push_message
from rlhf.v1 import policy_pb2


def serialised(offset: int, data: bytes) -> bytes:
    chunk = policy_pb2.WeightsChunk(offset_bytes=offset, data=data)
    return policy_pb2.UpdateWeightsRequest(chunk=chunk).SerializeToString()


@pytest.mark.parametrize("offset", [0, 1, 127, 128, 2**40, 2**63 - 1])
@pytest.mark.parametrize("size", [1, 127, 128, 70_000])
def test_a_chunk_is_a_view_of_its_message_whoever_wrote_it(offset, size):
    data = bytes(index % 251 for index in range(size))
    for message in (serialised(offset, data), chunk_message(offset, [data])):
        chunk = parse_push_message(message)
        assert isinstance(chunk, ChunkView)
        assert (chunk.offset_bytes, bytes(chunk.data)) == (offset, data)
        assert chunk.data.obj is message


@pytest.mark.parametrize(
    "request_",
    [
        policy_pb2.UpdateWeightsRequest(),
        policy_pb2.UpdateWeightsRequest(commit=policy_pb2.WeightsCommit()),
        policy_pb2.UpdateWeightsRequest(header=policy_pb2.WeightsHeader(policy_version=3)),
        policy_pb2.UpdateWeightsRequest(chunk=policy_pb2.WeightsChunk(offset_bytes=5)),
        policy_pb2.UpdateWeightsRequest(chunk=policy_pb2.WeightsChunk(offset_bytes=-1, data=b"x")),
    ],
)
def test_anything_else_is_what_protobuf_reads(request_):
    assert parse_push_message(request_.SerializeToString()) == request_


def test_a_message_that_is_cut_or_has_more_behind_it_is_what_protobuf_makes_of_it():
    message = serialised(300, b"abc")
    for end in range(1, len(message)):
        with pytest.raises(DecodeError):
            parse_push_message(message[:end])
    commit = policy_pb2.UpdateWeightsRequest(commit=policy_pb2.WeightsCommit()).SerializeToString()
    assert parse_push_message(message + commit) == policy_pb2.UpdateWeightsRequest(commit=policy_pb2.WeightsCommit())
