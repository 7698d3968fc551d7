"""HTTP beside gRPC for any service: routes that stand for rpcs, their errors, health, and models made of messages."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fastapi import APIRouter
from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient

from rlhf.errors import InvalidRequestError
from rlhf.serving.auth import make_authorizer
from rlhf.serving.calls import CallGuard, RpcMetrics
from rlhf.serving.http.app import make_app
from rlhf.serving.http.calls import GuardedRoute
from rlhf.serving.http.proto_json import add_rpc, json_of, model_of
from rlhf.v1 import policy_pb2, reference_pb2, reward_pb2, trainer_pb2

RPC = reference_pb2.DESCRIPTOR.services_by_name["ReferenceService"].methods_by_name["GetModel"]
MESSAGES = [
    message
    for module in (policy_pb2, reference_pb2, reward_pb2, trainer_pb2)
    for message in module.DESCRIPTOR.message_types_by_name.values()
]


async def get_model(
    request: reference_pb2.ReferenceServiceGetModelRequest,
) -> reference_pb2.ReferenceServiceGetModelResponse:
    """Names the reference."""
    return reference_pb2.ReferenceServiceGetModelResponse(model_name="v1")


async def fail(request: Any) -> reference_pb2.ReferenceServiceGetModelResponse:
    """Refuses."""
    raise InvalidRequestError("no; ask for less")


@contextmanager
def client_of(reason: str | None = None) -> Iterator[TestClient]:
    """Gives a client of an application with two routes. Args: reason: why it is not ready."""
    router = APIRouter(route_class=GuardedRoute)
    add_rpc(router, "GET", "/v1/model", RPC, get_model, summary="What is served", description="Names it.")
    add_rpc(router, "POST", "/v1/refused", RPC, fail, summary="What is refused")
    metrics = RpcMetrics(CollectorRegistry())
    guard = CallGuard("rlhf.v1.ReferenceService", metrics, lambda: reason, make_authorizer(), {})
    with TestClient(make_app("Reference", "Log-probabilities.", [router], guard, 1024)) as client:
        yield client


def test_an_rpc_answers_the_protos_json_and_documents_itself():
    with client_of() as client:
        answer = client.get("/v1/model", headers={"x-request-id": "r-1"})
        document = client.get("/openapi.json").json()
    assert answer.json()["model_name"] == "v1"
    assert answer.headers["x-request-id"] == "r-1"
    assert document["info"]["title"] == "Reference"
    assert document["info"]["description"].startswith("Log-probabilities.\nAn error is")
    assert document["paths"]["/v1/model"]["get"]["description"] == "Names it."


def test_errors_have_one_shape_wherever_they_come_from():
    with client_of() as client:
        refused = client.post("/v1/refused", json={})
        unknown = client.post("/v1/refused", json={"x": 1})
        assert client.get("/v2").json() == {"error": {"code": "not_found", "message": "no route /v2; see /docs"}}
        assert client.put("/v1/model").json()["error"]["code"] == "method_not_allowed"
    assert (refused.status_code, refused.json()) == (
        400,
        {"error": {"code": "invalid_argument", "message": "no; ask for less"}},
    )
    assert unknown.json()["error"]["message"] == "x: no such field; mend its name or leave it out"


def test_a_service_that_is_not_ready_lives_and_answers_no_call():
    with client_of("still loading") as client:
        assert client.get("/health").json() == {"status": "live"}
        for path in ("/ready", "/v1/model"):
            answer = client.get(path)
            assert (answer.status_code, answer.json()["error"]["message"]) == (503, "still loading")
            assert answer.headers["retry-after"] == "1"


def test_every_message_has_a_model_that_reads_what_is_written_but_for_bytes_and_maps():
    refused = []
    for message in MESSAGES:
        try:
            model = model_of(message)
        except TypeError as error:
            refused.append(str(error))
            continue
        written = json_of(model.decode(b"{}"))
        assert model.decode(written.encode()) == model.decode(b"{}")
    assert len(MESSAGES) - len(refused) > 50
    assert all(error.startswith("rlhf.v1.") for error in refused)


def test_numbers_of_64_bits_travel_as_text_and_enums_by_name():
    report = reward_pb2.RewardReport(item_count=2**53 + 1, drift=0.5)
    assert '"item_count": "9007199254740993"' in json_of(report)
    assert model_of(report.DESCRIPTOR).decode(json_of(report).encode()) == report
    error = reward_pb2.ScoreError(code=reward_pb2.SCORE_ERROR_CODE_TIMEOUT, message="late")
    assert model_of(error.DESCRIPTOR).decode(json_of(error).encode()) == error
    with pytest.raises(InvalidRequestError, match="code is 'LATE': Input should be 'SCORE_ERROR_CODE_UNSPECIFIED'"):
        model_of(error.DESCRIPTOR).decode(b'{"code": "LATE"}')
