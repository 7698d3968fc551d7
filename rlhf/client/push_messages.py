"""The messages of a weight push: made, sent and parsed by hand.

A payload's bytes are copied once, into the message that is sent, and not at all out of the one that comes.
"""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc

from rlhf.client import codec
from rlhf.client.tasks import at_once
from rlhf.v1 import policy_pb2
from rlhf.weights import PushHeader

CHUNK_BYTES = 1024 * 1024
"""Of the payload in one message: large enough to be fast, small enough to interleave with other calls."""

# The fields' tags as they are on the wire: number * 8 + 2 for one with a length, number * 8 for a number.
_CHUNK_TAG = bytes([policy_pb2.UpdateWeightsRequest.CHUNK_FIELD_NUMBER << 3 | 2])
_OFFSET_TAG = bytes([policy_pb2.WeightsChunk.OFFSET_BYTES_FIELD_NUMBER << 3])
_DATA_TAG = bytes([policy_pb2.WeightsChunk.DATA_FIELD_NUMBER << 3 | 2])
_COMMIT = policy_pb2.UpdateWeightsRequest(commit=policy_pb2.WeightsCommit()).SerializeToString()


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
    yield _header_message(header)
    offset = 0
    for pieces in _in_chunks(payload, chunk_bytes):
        yield chunk_message(offset, pieces)
        offset += sum(map(len, pieces))
    yield _COMMIT


async def relayed_messages(header: PushHeader, pieces: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """Yields a push as push_messages does, with each piece in a chunk of its own as soon as it is there."""
    yield _header_message(header)
    offset = 0
    async for piece in pieces:
        yield chunk_message(offset, (piece,))
        offset += len(piece)
    yield _COMMIT


def _header_message(header: PushHeader) -> bytes:
    return policy_pb2.UpdateWeightsRequest(header=codec.encode_header(header)).SerializeToString()


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


FAULT_DETAILS = "Internal error from Core"
LATE_SECONDS = 1.0
"""How long after that fault the receiver's own word is waited for; it is on this machine already, or nearly."""


async def send_push(
    call: Any, messages: AsyncIterable[bytes] | Iterable[bytes]
) -> policy_pb2.UpdateWeightsResponse | None:
    """Sends the messages of a push, and returns the answer.

    A receiver may end the call early: it refuses the push, or serves these weights already. If a message is being
    written at that moment, grpc.aio reports INTERNAL in place of what the receiver said (grpc/grpc issue 36066), so
    that is noted as it arrives.

    Args: a StreamUnaryCall that was begun without messages; the messages, serialised.
    Returns: None if the receiver took the push early, but the content of its answer was lost to that fault.
    Raises: AioRpcError as the receiver ended the call.
    """
    end: asyncio.Future[grpc.aio.AioRpcError] = asyncio.get_running_loop().create_future()

    def note(ended: Any) -> None:
        # Called with the fault and, before or after it, with what the receiver said.
        error = _end_of(ended)
        if not _is_fault(error) and not end.done():
            end.set_result(error)

    call.add_done_callback(note)
    try:
        if isinstance(messages, AsyncIterable):
            async for message in messages:
                await call.write(message)
        else:
            for message in messages:
                await call.write(message)
        await call.done_writing()
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        pass  # the call has ended, and its end says why
    try:
        answer: policy_pb2.UpdateWeightsResponse = await call
    except grpc.aio.AioRpcError as error:
        if not _is_fault(error):
            raise
        await asyncio.wait({end}, timeout=LATE_SECONDS)
        if not end.done():
            raise
        if end.result().code() is grpc.StatusCode.OK:
            return None
        raise end.result() from error
    return answer


def _is_fault(error: grpc.aio.AioRpcError) -> bool:
    return error.code() is grpc.StatusCode.INTERNAL and error.details() == FAULT_DETAILS


def _end_of(call: Any) -> grpc.aio.AioRpcError:
    """Returns how a call ended, in the moment in which it did."""
    trailing = at_once(call.trailing_metadata()) or grpc.aio.Metadata()
    return grpc.aio.AioRpcError(
        at_once(call.code()), grpc.aio.Metadata(), grpc.aio.Metadata(*trailing), at_once(call.details())
    )
