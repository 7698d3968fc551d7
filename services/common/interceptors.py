"""What happens around every call: the readiness gate, the request id, metrics, and errors turned into status codes."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import grpc
import structlog

from rlhf_services.common.errors import NotReadyError, ServiceError
from rlhf_services.common.logs import get_logger
from rlhf_services.common.metrics import RpcMetrics

log = get_logger(__name__)

# In quotes: only the type stubs know these classes as generic.
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Surrounds each call of one service; health and reflection pass untouched, so that they always answer."""

    def __init__(self, full_name: str, metrics: RpcMetrics, why_not_ready: Callable[[], str | None]) -> None:
        """Args: the service's full name; where to count; a function that says why no call can be served, or None."""
        self._full_name = full_name
        self._metrics = metrics
        self._why_not_ready = why_not_ready

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
            async with self._around(method, request, context):
                return await inner(request, context)

        return call

    def _stream(self, method: str, inner: Callable[..., Any]) -> Callable[..., Any]:
        async def call(request: Any, context: Context) -> AsyncIterator[Any]:
            async with self._around(method, request, context):
                async for response in inner(request, context):
                    yield response

        return call

    @asynccontextmanager
    async def _around(self, method: str, request: Any, context: Context) -> AsyncIterator[None]:
        request_id = getattr(request, "request_id", "") or uuid.uuid4().hex
        structlog.contextvars.bind_contextvars(request_id=request_id, method=method)
        labels = (self._full_name, method)
        code = grpc.StatusCode.OK
        start = time.monotonic()
        self._metrics.in_flight.labels(*labels).inc()
        try:
            reason = self._why_not_ready()
            if reason is not None:
                raise NotReadyError(reason)
            yield
        except ServiceError as error:
            code = error.status
            log.warning("call refused", code=code.name, error=str(error))
            await context.abort(code, str(error))
        except (asyncio.CancelledError, GeneratorExit):
            code = grpc.StatusCode.CANCELLED
            raise
        except Exception as error:  # the border: the caller gets a status, the log the trace
            code = grpc.StatusCode.INTERNAL
            log.exception("call failed", request_id=request_id)
            where = f"the service's log has the details under request_id {request_id}"
            await context.abort(code, f"internal error ({type(error).__name__}); {where}")
        finally:
            seconds = time.monotonic() - start
            self._metrics.in_flight.labels(*labels).dec()
            self._metrics.requests.labels(*labels, code.name).inc()
            self._metrics.seconds.labels(*labels).observe(seconds)
            log.debug("call ended", code=code.name, seconds=round(seconds, 4))
