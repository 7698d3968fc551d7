"""Spans, sent by real processes to a real OTLP receiver: one trace from the caller to the phases of its call."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from rlhf.client.tracing import ENDPOINT_VARIABLE, configure_tracing, tracing_is_on
from tests.support.secured_service import BODY, post

SCORE = "rlhf.v1.RewardService/Score"
CLIENT = """
import asyncio, sys
from rlhf.client import RewardClient, ScoreItem
from rlhf.errors import InvalidRequestError
from rlhf.client.tracing import configure_tracing

async def main():
    async with RewardClient(sys.argv[1], caller="tester") as client:
        assert await client.is_serving()
        await client.score([ScoreItem.text("a prompt", "a completion")])
        try:
            await client.score([ScoreItem.text("a prompt", "a completion")], tokenizer_digest="of-another")
        except InvalidRequestError:
            pass

configure_tracing("client")
asyncio.run(main())
"""


@dataclass
class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """What OpenTelemetry's collector would be."""

    spans: list[tuple[str, Span]] = field(default_factory=list)
    """The name of the process that sent it, and the span."""

    async def Export(self, request, context):
        for resource in request.resource_spans:
            names = {each.key: each.value.string_value for each in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans += [(names["service.name"], span) for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def of(self, service: str, name: str) -> list[Span]:
        """Returns a process's spans of a name, in the order of their beginning."""
        found = [span for sender, span in self.spans if (sender, span.name) == (service, name)]
        return sorted(found, key=lambda span: span.start_time_unix_nano)


@asynccontextmanager
async def receiving() -> AsyncIterator[tuple[Receiver, dict[str, str]]]:
    """Gives a receiver, and the environment of processes that send to it."""
    receiver, server = Receiver(), grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(receiver, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield receiver, {**os.environ, ENDPOINT_VARIABLE: f"http://127.0.0.1:{port}"}
    finally:
        await server.stop(0)


@asynccontextmanager
async def reward_process(environment: dict[str, str]) -> AsyncIterator[tuple[str, str]]:
    """Gives the gRPC target and the HTTP address of a reward service in a process of its own, which ends by SIGTERM."""
    command = [os.path.join(os.path.dirname(sys.executable), "rlhf-reward"), "--scorer.kind", "length"]
    command += ["--server.host", "127.0.0.1", "--server.port", "0", "--server.metrics_port", "0", "--http.port", "0"]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE, env=environment)
    assert process.stderr is not None
    ports: dict[str, int] = {}
    while True:
        event = json.loads(await asyncio.wait_for(process.stderr.readline(), 60))
        if event["event"] == "serving":
            break
        ports[event["event"]] = event.get("port", 0)
    reading = asyncio.create_task(process.stderr.read())
    yield f"127.0.0.1:{ports['listening']}", f"127.0.0.1:{ports['listening over http']}"
    process.send_signal(signal.SIGTERM)
    log = await reading
    assert await process.wait() == 0, log


async def test_one_trace_leads_from_a_call_to_the_phases_of_its_service():
    trace_id, parent_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    headers = {"traceparent": f"00-{trace_id}-{parent_id}-01"}
    async with receiving() as (receiver, environment), reward_process(environment) as (target, http):
        client = await asyncio.create_subprocess_exec(sys.executable, "-c", CLIENT, target, env=environment)
        assert await client.wait() == 0
        async with aiohttp.ClientSession(headers=headers) as session:
            assert (await session.post(f"http://{http}/v1/score", json=BODY)).status == 200
    asked, refused = receiver.of("rlhf-client", SCORE)
    served, also_refused, over_http = receiver.of("rlhf-reward", SCORE)
    assert (asked.kind, served.kind) == (Span.SPAN_KIND_CLIENT, Span.SPAN_KIND_SERVER)
    assert (served.trace_id, served.parent_span_id) == (asked.trace_id, asked.span_id)
    assert (also_refused.trace_id, also_refused.parent_span_id) == (refused.trace_id, refused.span_id)
    assert (over_http.trace_id.hex(), over_http.parent_span_id.hex()) == (trace_id, parent_id)
    for phase in ("tokenise", "queue", "model"):
        spans = receiver.of("rlhf-reward", phase)
        assert [span.parent_span_id for span in spans] == [served.span_id, over_http.span_id], phase
    # A refusal is an error of both sides, told by its code; its words are in the log.
    for span in (refused, also_refused):
        assert (span.status.code, span.status.message) == (Status.STATUS_CODE_ERROR, "INVALID_ARGUMENT")
    assert served.status.code == Status.STATUS_CODE_UNSET
    attributes = {each.key: each.value.string_value for each in served.attributes}
    assert attributes["rlhf.caller"] == "tester"
    # Probes ask for health every few seconds: they have no spans.
    assert not any("Health" in span.name for _, span in receiver.spans)


async def test_a_service_whose_collector_is_away_serves_and_ends_as_ever(unused_endpoint):
    environment = {**os.environ, ENDPOINT_VARIABLE: unused_endpoint, "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    async with reward_process(environment) as (_, http):
        assert (await post(http, "/v1/score", BODY))[0] == 200


@pytest.fixture
def unused_endpoint(unused_tcp_port: int) -> str:
    """Where nobody listens."""
    return f"http://127.0.0.1:{unused_tcp_port}"


def test_nothing_is_recorded_unless_an_endpoint_is_named(monkeypatch):
    monkeypatch.delenv(ENDPOINT_VARIABLE, raising=False)
    configure_tracing("test")
    assert not tracing_is_on()
