"""Calls over HTTP that wait, leave, come too many, or come too early; and the port they come to."""

import asyncio
import json
from functools import partial
from typing import Any

import pytest

from rlhf.errors import ConfigError
from services.reward.config import RewardHttpConfig
from services.reward.server import make_http_server
from tests.support.http_service import Served, length_rule, served
from tests.support.number_scorer import NumberScorer, until


def numbers(*completions: str) -> dict[str, Any]:
    """The body of a call for a NumberScorer."""
    return {"items": [{"text": {"prompt": "p", "completion": completion}} for completion in completions]}


async def test_a_full_queue_is_refused_at_once_with_the_time_to_come_back():
    scorer = NumberScorer()
    scorer.gate.clear()
    async with served(lambda: scorer, max_items=2, max_queue_items=2) as service:
        first = asyncio.create_task(service.post("/v1/score", numbers("1")))
        await scorer.wait_until_running()
        second = asyncio.create_task(service.post("/v1/score", numbers("2", "3")))
        await until(lambda: service.registry.get_sample_value("rlhf_reward_queue_items") == 2)
        async with service.http.post("/v1/score", json=numbers("4")) as refused:
            assert refused.status == 429
            assert int(refused.headers["retry-after"]) >= 1
            assert (await refused.json())["error"]["code"] == "resource_exhausted"
        scorer.gate.set()
        assert [result["reward"] for result in (await first)[1]["results"]] == [1.0]
        assert [result["reward"] for result in (await second)[1]["results"]] == [2.0, 3.0]


async def test_large_bodies_share_their_room_and_what_is_over_it_may_come_back():
    scorer = NumberScorer()
    scorer.gate.clear()
    # A number of 2000 digits and more around it; there is room for four bodies of 3000 bytes.
    body = numbers("0" * 2000 + "7")
    async with served(lambda: scorer, max_body_bytes=3000) as service:
        waiting = [asyncio.create_task(service.post("/v1/score", body)) for _ in range(5)]
        await scorer.wait_until_running()
        queued = partial(service.registry.get_sample_value, "rlhf_reward_queue_items")
        await until(lambda: len(scorer.scored) + (queued() or 0) == 5)
        status, answer = await service.post("/v1/score", body)
        assert (status, answer["error"]["code"]) == (429, "resource_exhausted")
        assert "too many large bodies at once" in answer["error"]["message"]
        assert (await service.post("/v1/score", b"x" * 4000, content_type="application/json"))[0] == 413
        scorer.gate.set()
        assert [status for status, _ in await asyncio.gather(*waiting)] == [200] * 5
        assert (await service.post("/v1/score", body))[1]["results"][0]["reward"] == 7.0


async def test_work_that_nobody_waits_for_any_more_is_not_done():
    scorer = NumberScorer()
    scorer.gate.clear()
    async with served(lambda: scorer) as service:
        first = asyncio.create_task(service.post("/v1/score", numbers("1")))
        await scorer.wait_until_running()
        status, answer = await service.post("/v1/score", numbers("2"), x_request_timeout_seconds="0.1")
        assert (status, answer["error"]["code"]) == (504, "deadline_exceeded")
        leaving = asyncio.create_task(service.post("/v1/score", numbers("3")))
        await until(lambda: service.registry.get_sample_value("rlhf_reward_queue_items") == 1)
        leaving.cancel()
        await until(lambda: service.registry.get_sample_value("rlhf_reward_queue_items") == 0)
        scorer.gate.set()
        assert (await first)[0] == 200
        assert (await service.post("/v1/score", numbers("4")))[0] == 200
        status, answer = await service.post("/v1/score", numbers("5"), x_request_timeout_seconds="soon")
        assert "x-request-timeout-seconds is 'soon'; send a positive number" in answer["error"]["message"]
    assert scorer.scored == ["1", "4"]
    codes = {code: _num_calls(service, code) for code in ("OK", "CANCELLED", "DEADLINE_EXCEEDED", "INVALID_ARGUMENT")}
    assert codes == {"OK": 2, "CANCELLED": 1, "DEADLINE_EXCEEDED": 1, "INVALID_ARGUMENT": 1}


def _num_calls(service: Served, code: str) -> float | None:
    labels = {"service": "rlhf.v1.RewardService", "method": "Score", "code": code}
    return service.registry.get_sample_value("rlhf_rpc_requests_total", labels)


async def test_health_and_readiness_follow_the_scorer():
    scorer = NumberScorer()
    scorer.gate.clear()

    def build() -> NumberScorer:
        assert scorer.gate.wait(10)
        return scorer

    async with served(build, ready=False) as service:
        assert await service.get("/health") == (200, {"status": "live"})
        for path in ("/ready", "/v1/model"):
            status, answer = await service.get(path)
            assert status == 503
            assert "still loading" in json.dumps(answer)
        scorer.gate.set()
        await service.server.wait_ready()
        assert await service.get("/ready") == (200, {"status": "ready"})


async def test_ids_of_requests_come_back_and_a_fault_of_the_scorer_is_the_items_own():
    async with served(NumberScorer) as service:
        async with service.http.post("/v1/score", json=numbers("7", "?"), headers={"x-request-id": "r-1"}) as answer:
            assert answer.headers["x-request-id"] == "r-1"
            results = (await answer.json())["results"]
        assert results[0]["reward"] == 7.0
        assert results[1]["error"]["code"] == "SCORE_ERROR_CODE_SCORER_FAILED"


async def test_a_thousand_connections_are_answered_each_with_its_own():
    async with served(NumberScorer) as service:
        answers = await asyncio.gather(*(service.post("/v1/score", numbers(str(number))) for number in range(1000)))
    assert [answer["results"][0]["reward"] for _, answer in answers] == [float(number) for number in range(1000)]


async def test_a_port_that_is_taken_is_named():
    async with served(length_rule) as service:
        other = make_http_server(service.core, RewardHttpConfig(port=service.http_server.port), "127.0.0.1")
        with pytest.raises(
            ConfigError, match=rf"http.port is {service.http_server.port} on 127.0.0.1: .*--http.port 0"
        ):
            await other.start(None)
