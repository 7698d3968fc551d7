"""The messages of a weight push, serialised and parsed by hand.

A payload's bytes are copied once, into the message that is sent, and not at all out of the one that comes.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rlhf.client import codec
from rlhf.pushes import PushHeader
from rlhf.v1 import policy_pb2

CHUNK_BYTES = 1024 * 1024
"""Of the payload in one message: large enough to be fast, small enough to interleave with other calls."""

# The fields' tags as they are on the wire: number * 8 + 2 for one with a length, number * 8 for a number.
_CHUNK_TAG = bytes([policy_pb2.UpdateWeightsRequest.CHUNK_FIELD_NUMBER << 3 | 2])
_OFFSET_TAG = bytes([policy_pb2.WeightsChunk.OFFSET_BYTES_FIELD_NUMBER << 3])
_DATA_TAG = bytes([policy_pb2.WeightsChunk.DATA_FIELD_NUMBER << 3 | 2])


@dataclass(frozen=True, slots=True)
class ChunkView:
    """A WeightsChunk whose data are a part of the message they came in."""

    offset_bytes: int
    data: memoryview


def push_messages(
    header: PushHeader, payload: Iterable[bytes | memoryview], chunk_bytes: int = CHUNK_BYTES
) -> Iterator[bytes]:
    """Yields a push as serialised UpdateWeightsRequests: header, chunks, commit.

    Args:
        header: what is pushed.
        payload: contiguous pieces of any size, large and small.
        chunk_bytes: size of every chunk but the last, which has what is left.
    """
    yield policy_pb2.UpdateWeightsRequest(header=codec.encode_header(header)).SerializeToString()
    offset = 0
    for pieces in _in_chunks(payload, chunk_bytes):
        yield chunk_message(offset, pieces)
        offset += sum(map(len, pieces))
    yield policy_pb2.UpdateWeightsRequest(commit=policy_pb2.WeightsCommit()).SerializeToString()


def chunk_message(offset: int, pieces: Sequence[bytes | memoryview]) -> bytes:
    """Returns a serialised UpdateWeightsRequest with a chunk whose data are the pieces, one after another."""
    data_head = _DATA_TAG + _varint(sum(map(len, pieces)))
    # Protobuf leaves a number of 0 out.
    chunk_head = (_OFFSET_TAG + _varint(offset) if offset else b"") + data_head
    chunk_bytes = len(chunk_head) + sum(map(len, pieces))
    return b"".join((_CHUNK_TAG, _varint(chunk_bytes), chunk_head, *pieces))


def _in_chunks(payload: Iterable[bytes | memoryview], chunk_bytes: int) -> Iterator[list[memoryview]]:
    """Yields the payload in lists of pieces that have chunk_bytes together, the last perhaps less, but never none."""
    pieces: list[memoryview] = []
    room = chunk_bytes
    for each in payload:
        view = memoryview(each).cast("B")
        while len(view):
            pieces.append(view[:room])
            view = view[room:]
            room -= len(pieces[-1])
            if not room:
                yield pieces
                pieces, room = [], chunk_bytes
    if pieces:
        yield pieces


def _varint(number: int) -> bytes:
    """Returns a number as protobuf writes it: 7 bits a byte, the least significant first, all but the last marked."""
    encoded = bytearray()
    while number > 127:
        encoded.append(number & 127 | 128)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


def parse_push_message(message: bytes) -> ChunkView | policy_pb2.UpdateWeightsRequest:
    """Returns a serialised UpdateWeightsRequest; a chunk as a view if it is written as chunk_message would.

    Raises: google.protobuf.message.DecodeError if it is no such request.
    """
    return _chunk_view(message) or policy_pb2.UpdateWeightsRequest.FromString(message)


def _chunk_view(message: bytes) -> ChunkView | None:
    """Returns the chunk that a message holds; None if it holds something else, or anything beside it."""
    try:
        if message[:1] != _CHUNK_TAG:
            return None
        chunk_bytes, at = _read_varint(message, 1)
        if at + chunk_bytes != len(message):
            return None
        offset = 0
        if message[at : at + 1] == _OFFSET_TAG:
            offset, at = _read_varint(message, at + 1)
        if message[at : at + 1] != _DATA_TAG:
            return None
        data_bytes, at = _read_varint(message, at + 1)
    except IndexError:  # it ends inside a number
        return None
    # An offset from 2^63 on is a negative number; protobuf's own parser knows.
    return ChunkView(offset, memoryview(message)[at:]) if at + data_bytes == len(message) and offset < 2**63 else None


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    """Returns the number that begins there, and where it ends."""
    number = shift = 0
    while message[at] > 127:
        number |= (message[at] & 127) << shift
        shift, at = shift + 7, at + 1
    return number | message[at] << shift, at + 1
