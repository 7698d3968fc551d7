"""The Node.js example, installed from its lock file and run as its README says."""

import json
from collections import deque
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
import trustme

from rlhf.serving.auth import AUTH_VARIABLE
from tests.support.certificates import issue
from tests.support.fake_text_reward import FakeTextReward
from tests.support.node_example import ROOT, NodeExample
from tests.support.secured_service import entry, secured_service

TOKEN = "token-of-the-agent"


@pytest.fixture
async def service() -> AsyncIterator[FakeTextReward]:
    async with FakeTextReward(max_items=2) as fake:
        yield fake


def record(completion: str) -> dict[str, str]:
    return {"prompt": "a prompt", "completion": completion}


async def test_lines_come_back_in_order_and_an_item_without_a_reward_has_its_own_error(
    node_example: NodeExample, service: FakeTextReward
):
    service.item_errors["long"] = deque(["TOO_LONG"])
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    run = await node_example.score([record("abc"), record("long"), {"messages": messages}], service.target)
    assert run.results == [
        {**record("abc"), "reward": 3, "model_version": "v1"},
        {
            **record("long"),
            "error": {"code": "SCORE_ERROR_CODE_TOO_LONG", "message": "refused by the fake"},
            "model_version": "v1",
        },
        {"messages": messages, "reward": 5, "model_version": "v1"},
    ]
    assert (run.code, run.errors) == (1, "")
    assert service.sizes == [2, 1]


async def test_a_service_that_is_away_or_full_for_a_moment_is_asked_again_with_the_same_id(
    node_example: NodeExample, service: FakeTextReward
):
    service.refusals.extend([(grpc.StatusCode.UNAVAILABLE, ""), (grpc.StatusCode.RESOURCE_EXHAUSTED, "10")])
    service.components = True
    run = await node_example.score([record("abc")], service.target)
    component = {"name": "length", "weight": 1, "reward": 3, "spread": 0.5}
    assert run.results == [{**record("abc"), "reward": 3, "components": [component], "model_version": "v1"}]
    assert run.code == 0
    assert len(service.requests) == 3
    assert len({request.request_id for request in service.requests}) == 1


async def test_a_call_ends_with_its_deadline_or_with_what_no_waiting_lifts(
    node_example: NodeExample, service: FakeTextReward
):
    away = await node_example.score([record("abc")], "127.0.0.1:1", "--deadline-seconds", "0.5")
    assert (away.code, away.results) == (2, [])
    assert away.errors.startswith("score.js: ")
    service.refusals.append((grpc.StatusCode.INVALID_ARGUMENT, ""))
    wrong = await node_example.score([record("abc")], service.target)
    assert (wrong.code, wrong.errors) == (2, "score.js: 3 INVALID_ARGUMENT: refused by the fake\n")
    assert len(service.requests) == 1


async def test_it_shows_its_certificate_and_its_token(
    node_example: NodeExample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    authority = trustme.CA()
    for name, value in issue(authority, tmp_path / "service", "localhost").items():
        monkeypatch.setenv(name, value)
    (tmp_path / "clients.toml").write_text(entry("agent", ["score"], token=TOKEN))
    monkeypatch.setenv(AUTH_VARIABLE, str(tmp_path / "clients.toml"))
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    certificate = issue(authority, tmp_path / "agent", "agent.example")
    async with secured_service() as secured:
        with_token = {**certificate, "RLHF_TOKEN_FILE": str(tmp_path / "token")}
        run = await node_example.score([record("x" * 150)], secured.target, variables=with_token)
        assert run.errors == ""
        assert [result["reward"] for result in run.results] == [0.75]  # the target is 200: 1 - |150 - 200| / 200
        stranger = await node_example.score([record("x")], secured.target, variables=certificate)
        assert stranger.code == 2
        assert "UNAUTHENTICATED" in stranger.errors


def test_the_lock_file_names_versions_and_digests_and_no_registry():
    lock = json.loads((ROOT / "examples/clients/node/package-lock.json").read_text())
    packages = [package for path, package in lock["packages"].items() if path]
    assert packages
    assert all("integrity" in package and "resolved" not in package for package in packages)
