"""What gRPC adds around a call: credentials from metadata and certificate, and errors as status codes."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeAlias
from urllib.parse import unquote

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from rlhf.client.channel import CALLER_KEY
from rlhf.client.rpc_errors import RETRY_AFTER_KEY
from rlhf.client.tracing import continued
from rlhf.errors import OverloadedError, ServiceError
from rlhf.serving.calls import CallCredentials, CallGuard

# In quotes: only the type stubs know these classes as generic.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

STATUS_DETAILS_KEY = "grpc-status-details-bin"

MAX_MESSAGE_BYTES = 2000
"""Of an error's message. A client takes no more than 8 KiB of metadata, and mistakes what is longer for an overload."""


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Surrounds each call of one service; health and reflection pass untouched, so that they always answer."""

    def __init__(self, full_name: str, guard: CallGuard) -> None:
        """Args: the service's full name; what surrounds its calls."""
        self._full_name = full_name
        self._guard = guard

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        """Returns the call's handler, wrapped."""
        handler = await continuation(handler_call_details)
        service, _, method = handler_call_details.method.removeprefix("/").partition("/")
        if handler is None or service != self._full_name:
            return handler
        wrap = self._stream if handler.response_streaming else self._unary
        for kind in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
            inner = getattr(handler, kind)
            if inner is not None:
                make = getattr(grpc, f"{kind}_rpc_method_handler")
                wrapped: Handler = make(wrap(method, inner), handler.request_deserializer, handler.response_serializer)
                return wrapped
        return handler

    def _unary(self, method: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        async def call(request: Any, context: Context) -> Any:
            try:
                async with self._around(method, request, context):
                    return await inner(request, context)
            except ServiceError as error:
                await _abort(context, error)

        return call

    def _stream(self, method: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        async def call(request: Any, context: Context) -> AsyncIterator[Any]:
            try:
                async with self._around(method, request, context):
                    async for message in inner(request, context):
                        yield message
            except ServiceError as error:
                await _abort(context, error)

        return call

    @asynccontextmanager
    async def _around(self, method: str, request: Any, context: Context) -> AsyncIterator[None]:
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        with continued(metadata):
            async with self._guard.around(method, credentials_of(context, metadata), *_described(request)):
                yield


def credentials_of(context: Context, metadata: Mapping[str, str]) -> CallCredentials:
    """Returns what a call brings to say who makes it."""
    peer = context.auth_context()
    # By the standard, the common name counts only where there is no alternative name.
    names = peer.get("x509_subject_alternative_name") or peer.get("x509_common_name") or ()
    return CallCredentials(
        authorization=metadata.get("authorization"),
        certificate_names=tuple(name.decode(errors="replace") for name in names),
        claimed_name=metadata.get(CALLER_KEY),
        host=host_of_peer(context.peer()),
    )


def host_of_peer(peer: str) -> str:
    """Returns the host of gRPC's name for the other side: "ipv4:10.0.0.7:4711" is "10.0.0.7"; "unix:" is "local"."""
    kind, _, address = unquote(peer).partition(":")
    if kind not in ("ipv4", "ipv6"):
        return "local"
    return address.rpartition(":")[0].strip("[]")


def _described(request: Any) -> tuple[str, int | None]:
    """Returns the request's id, and how many items it has; a stream of requests has neither."""
    items = getattr(request, "items", None)
    return getattr(request, "request_id", ""), None if items is None else len(items)


async def _abort(context: Context, error: ServiceError) -> None:
    await context.abort(grpc.StatusCode[error.status], clipped(str(error)), _retry_metadata(error))


def clipped(message: str) -> str:
    """Returns the message, its middle left out if it is too long to be sent: a value that the caller sent is there."""
    if len(message.encode(errors="replace")) <= MAX_MESSAGE_BYTES:
        return message
    # A character has up to 4 bytes.
    num_kept = (MAX_MESSAGE_BYTES if message.isascii() else MAX_MESSAGE_BYTES // 4) // 2
    return f"{message[:num_kept]} [...] {message[-num_kept:]}"


def _retry_metadata(error: ServiceError) -> tuple[tuple[str, str | bytes], ...]:
    """Returns the trailing metadata that says when to try again: for any gRPC client, and for those who read none."""
    if not isinstance(error, OverloadedError) or error.retry_after_seconds is None:
        return ()
    milliseconds = max(1, round(1000 * error.retry_after_seconds))
    delay = duration_pb2.Duration()
    delay.FromMilliseconds(milliseconds)
    info = any_pb2.Any()
    info.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(code=grpc.StatusCode[error.status].value[0], message=str(error), details=[info])
    return (RETRY_AFTER_KEY, str(milliseconds)), (STATUS_DETAILS_KEY, status.SerializeToString())
