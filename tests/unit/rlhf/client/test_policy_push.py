"""What a policy service gets when weights are pushed to it: a real server, and our own contract."""

from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from rlhf.client import codec
from rlhf.client.policy import PolicyClient
from rlhf.client.push_messages import CHUNK_BYTES
from rlhf.client.rpc_errors import RETRY_AFTER_KEY
from rlhf.errors import InvalidRequestError, OverloadedError, PreconditionError
from rlhf.v1 import policy_pb2, policy_pb2_grpc
from rlhf.weights import PatchPart, PushHeader, PushResult, RelayedPush, TensorInfo, WeightsManifest

MANIFEST = WeightsManifest((TensorInfo("w", "F32", (3,), "d"), TensorInfo("v", "F32", (1_000_000,), "e")))
RESULT = PushResult(
    policy_version=3,
    weights_digest=MANIFEST.digest,
    pause_seconds=0.25,
    stage_seconds=1.5,
    relayed=(RelayedPush(target="b:1", error="is away"),),
)


class Receiver(policy_pb2_grpc.PolicyServiceServicer):
    """Keeps what it is sent, and may refuse it after the header."""

    def __init__(self) -> None:
        self.header: PushHeader | None = None
        self.chunks: list[tuple[int, int]] = []
        self.payload = b""
        self.parts: list[str] = []
        self.refusal: tuple[Any, ...] | None = None
        self.serves_them_already = False

    async def UpdateWeights(self, request_iterator: AsyncIterator[Any], context: Any) -> Any:
        async for request in request_iterator:
            self.parts.append(request.WhichOneof("part"))
            if self.parts[-1] == "header":
                self.header = codec.decode_header(request.header)
                if self.serves_them_already:
                    break
                if self.refusal is not None:
                    await context.abort(*self.refusal)
            elif self.parts[-1] == "chunk":
                self.chunks.append((request.chunk.offset_bytes, len(request.chunk.data)))
                self.payload += request.chunk.data
        return codec.encode_push_result(RESULT)

    async def GetModel(self, request: Any, context: Any) -> Any:
        return policy_pb2.PolicyServiceGetModelResponse(policy_version=3, weights_digest=MANIFEST.digest)


@asynccontextmanager
async def serving(receiver: Receiver) -> AsyncIterator[PolicyClient]:
    server = grpc.aio.server()
    policy_pb2_grpc.add_PolicyServiceServicer_to_server(receiver, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with PolicyClient(f"127.0.0.1:{port}") as client:
            yield client
    finally:
        await server.stop(None)


@pytest.fixture
def receiver() -> Receiver:
    return Receiver()


async def push(receiver: Receiver, header: PushHeader, payload: Iterable[bytes | memoryview]) -> PushResult:
    async with serving(receiver) as client:
        return await client.update_weights(header, payload, deadline_seconds=20)


async def test_all_weights_arrive_in_chunks_of_a_mebibyte(receiver: Receiver):
    tensors = [bytes(range(12)), bytes(range(250)) * 16_000]  # 12 bytes and 4,000,000
    header = PushHeader.full(3, MANIFEST)
    result = await push(receiver, header, (memoryview(each) for each in tensors))
    assert result == RESULT
    assert receiver.header == PushHeader(
        policy_version=3,
        manifest=MANIFEST,
        weights_digest=MANIFEST.digest,
        parts=(PatchPart(0, 0), PatchPart(0, 0)),
    )
    assert receiver.payload == b"".join(tensors)
    assert receiver.chunks == [
        (0, CHUNK_BYTES),
        (1_048_576, CHUNK_BYTES),
        (2_097_152, CHUNK_BYTES),
        (3_145_728, 854_284),
    ]
    assert receiver.parts == ["header", *["chunk"] * 4, "commit"]


async def test_the_small_frames_of_a_patch_travel_together(receiver: Receiver):
    header = PushHeader(
        policy_version=3,
        manifest=MANIFEST,
        weights_digest=MANIFEST.digest,
        encoding="sparse_patch",
        base_policy_version=2,
        base_weights_digest="base",
        parts=(PatchPart(2, 20), PatchPart(3, 2)),
        relay_targets=("b:1",),
    )
    await push(receiver, header, [b"f" * 20, b"gg"])
    assert receiver.header == header
    assert receiver.chunks == [(0, 22)]
    assert receiver.payload == b"f" * 20 + b"gg"


async def test_a_patch_of_nothing_is_a_header_and_a_commit(receiver: Receiver):
    header = PushHeader(policy_version=3, manifest=MANIFEST, weights_digest="same", encoding="sparse_patch")
    await push(receiver, header, [])
    assert receiver.parts == ["header", "commit"]


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (grpc.StatusCode.FAILED_PRECONDITION, PreconditionError),
        (grpc.StatusCode.INVALID_ARGUMENT, InvalidRequestError),
    ],
)
async def test_a_refusal_while_we_send_comes_out_with_its_reason(
    receiver: Receiver, code: grpc.StatusCode, error: type[Exception]
):
    receiver.refusal = (code, "version 5 is served")
    async with serving(receiver) as client:
        for _ in range(25):  # grpc alone would lose two reasons of five
            with pytest.raises(error, match="version 5 is served"):
                await client.update_weights(PushHeader.full(3, MANIFEST), [bytes(20 * CHUNK_BYTES)])


async def test_what_comes_with_a_refusal_while_we_send_is_kept(receiver: Receiver):
    receiver.refusal = (grpc.StatusCode.RESOURCE_EXHAUSTED, "a push is under way", ((RETRY_AFTER_KEY, "1500"),))
    async with serving(receiver) as client:
        for _ in range(25):
            with pytest.raises(OverloadedError, match="a push is under way") as refused:
                await client.update_weights(PushHeader.full(3, MANIFEST), [bytes(20 * CHUNK_BYTES)])
            assert refused.value.retry_after_seconds == 1.5


async def test_weights_that_are_served_already_may_be_answered_before_they_are_sent(receiver: Receiver):
    receiver.serves_them_already = True
    async with serving(receiver) as client:
        for _ in range(25):
            result = await client.update_weights(PushHeader.full(3, MANIFEST), [bytes(20 * CHUNK_BYTES)])
            assert (result.policy_version, result.weights_digest) == (3, MANIFEST.digest)


async def test_a_payload_that_fails_comes_out_as_its_own_error_and_ends_the_call(receiver: Receiver):
    def payload() -> Iterator[bytes]:
        yield bytes(2 * CHUNK_BYTES)
        raise ValueError("version 3 has no patch")

    with pytest.raises(ValueError, match="version 3 has no patch"):
        await push(receiver, PushHeader.full(3, MANIFEST), payload())
    assert "commit" not in receiver.parts
