"""Spans for OpenTelemetry: of calls on both sides, joined by W3C's traceparent, and of what a service does in them.

They go where OTEL_EXPORTER_OTLP_ENDPOINT points; without it nothing is recorded. A program that uses our clients, and
has a tracer provider of its own, gets their spans in it.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import grpc
from opentelemetry import context as otel_context
from opentelemetry import propagate, trace

from rlhf.client.tasks import at_once
from rlhf.logs import get_logger

log = get_logger(__name__)

Metadata = Sequence[tuple[str, str | bytes]]
ENDPOINT_VARIABLE = "OTEL_EXPORTER_OTLP_ENDPOINT"


def configure_tracing(service: str) -> None:
    """Sends this process's spans to the endpoint that the environment names; does nothing if it names none.

    Args: service: such as "reward"; the spans say "rlhf-reward", unless OTEL_SERVICE_NAME says another name.
    """
    endpoint = os.environ.get(ENDPOINT_VARIABLE, "")
    if not endpoint or tracing_is_on():
        return
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        log.warning(f"{ENDPOINT_VARIABLE} is set, but no span is sent: install rlhf-services[otel]")
        return
    name = os.environ.get("OTEL_SERVICE_NAME") or f"rlhf-{service}"
    provider = TracerProvider(resource=Resource.create({SERVICE_NAME: name}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)
    log.info("spans are sent", endpoint=endpoint)


def tracing_is_on() -> bool:
    """Returns whether anybody records spans in this process."""
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider | trace.NoOpTracerProvider)


def tracer() -> trace.Tracer:
    """Returns what makes spans: `with tracer().start_as_current_span("queue"): ...`; they cost nothing while off."""
    return trace.get_tracer("rlhf")


@contextlib.contextmanager
def server_span(full_name: str, method: str) -> Iterator[trace.Span]:
    """Gives the span of a call that is being served; `continued` makes it part of the caller's trace."""
    attributes = {"rpc.system": "grpc", "rpc.service": full_name, "rpc.method": method}
    # An error's words are for the caller and the log; a span says its status code.
    with tracer().start_as_current_span(
        f"{full_name}/{method}",
        kind=trace.SpanKind.SERVER,
        attributes=attributes,
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        yield span


def end_with(span: trace.Span, code: grpc.StatusCode) -> None:
    """Notes how a call ended."""
    span.set_attribute("rpc.grpc.status_code", code.value[0])
    if code is not grpc.StatusCode.OK:
        span.set_status(trace.StatusCode.ERROR, code.name)


@contextlib.contextmanager
def continued(headers: Mapping[str, str]) -> Iterator[None]:
    """Makes the spans of its block part of the trace that a request's headers, or its metadata, name."""
    if not tracing_is_on():
        yield
        return
    token = otel_context.attach(propagate.extract(headers))
    try:
        yield
    finally:
        otel_context.detach(token)


def traced_call(method: str, metadata: Metadata, start: Callable[[Metadata], Any]) -> Any:
    """Returns the call that `start` begins with some metadata; a span lasts as long as it.

    Args: method: its path, such as "/rlhf.v1.RewardService/Score"; health and reflection have no spans.
    """
    if not tracing_is_on() or method.startswith("/grpc."):
        return start(metadata)
    service, _, name = method.removeprefix("/").partition("/")
    attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
    span = tracer().start_span(f"{service}/{name}", kind=trace.SpanKind.CLIENT, attributes=attributes)
    headers: dict[str, str] = {}
    propagate.inject(headers, trace.set_span_in_context(span))
    call = start((*metadata, *headers.items()))
    call.add_done_callback(partial(_end, span))
    return call


def _end(span: trace.Span, call: Any) -> None:
    try:
        end_with(span, at_once(call.code()))
    finally:
        span.end()
