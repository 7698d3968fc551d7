"""Tokens, certificates and scopes through real sockets: the same answers over gRPC and over HTTP."""

import asyncio
import json
import os
import signal
import sys
import urllib.request
from pathlib import Path

import grpc
import pytest
import trustme
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from rlhf.client import Reward, RewardClient, ScoreItem
from rlhf.client.channel import TOKEN_VARIABLE, open_channel
from rlhf.client.policy import PolicyClient
from rlhf.errors import ConfigError, PermissionDeniedError, UnauthenticatedError
from rlhf.rollout import Prompt, Sampling
from rlhf.serving.auth import AUTH_VARIABLE
from rlhf.v1 import policy_pb2_grpc
from tests.support.certificates import http_context, issue
from tests.support.real_services import make_policy
from tests.support.secured_service import BODY, entry, post, replace, secured_service

ITEM = ScoreItem.text("a prompt", "a completion")
TRAINER, WATCHER, ADMIN = "token-of-the-trainer", "token-of-the-watcher", "token-of-the-admin"
LOAD = {"model_paths": ["/nowhere"]}


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The service's list of clients: a trainer that may score, a watcher that may not, and an admin."""
    path = tmp_path / "clients.toml"
    clients = entry("trainer", ["score"], token=TRAINER), entry("watcher", ["watch"], token=WATCHER)
    path.write_text("".join(clients) + entry("operator", ["admin"], token=ADMIN))
    monkeypatch.setenv(AUTH_VARIABLE, str(path))
    return path


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file with the token that our clients show: the trainer's."""
    path = tmp_path / "token"
    path.write_text(f"{TRAINER}\n")
    monkeypatch.setenv(TOKEN_VARIABLE, str(path))
    return path


async def test_a_client_with_the_token_and_the_scope_is_served(listed, shown):
    async with secured_service() as service:
        async with RewardClient(service.target) as client:
            (result,) = (await client.score([ITEM])).results
            assert isinstance(result, Reward)
        async with RewardClient(service.target, token=ADMIN) as client:
            assert (await client.score([ITEM])).results == [result]
        status, answer = await post(service.http, "/v1/score", BODY, token=TRAINER)
        assert status == 200
        assert answer["results"][0]["reward"] == pytest.approx(result.reward, abs=1e-6)


@pytest.mark.parametrize(
    ("token", "error", "status", "code"),
    [
        (None, UnauthenticatedError, 401, "unauthenticated"),
        ("a-token-nobody-knows", UnauthenticatedError, 401, "unauthenticated"),
        (WATCHER, PermissionDeniedError, 403, "permission_denied"),
    ],
)
async def test_a_client_without_token_or_scope_is_refused_alike_over_grpc_and_http(
    listed, shown, monkeypatch, token, error, status, code
):
    if token is None:
        monkeypatch.delenv(TOKEN_VARIABLE)
    else:
        shown.write_text(token)
    async with secured_service() as service:
        async with RewardClient(service.target) as client:
            with pytest.raises(error, match=rf"^reward service at {service.target}: ") as refusal:
                await client.score([ITEM])
        answer = await post(service.http, "/v1/score", BODY, token=token)
    assert answer[0] == status
    assert answer[1]["error"]["code"] == code
    assert str(refusal.value).endswith(answer[1]["error"]["message"])
    assert token is None or token not in str(refusal.value)


async def test_only_an_admin_may_load_a_model(listed, shown):
    async with secured_service() as service:
        async with RewardClient(service.target) as client:
            with pytest.raises(
                PermissionDeniedError, match="'trainer' has the scopes 'score'; this call needs 'admin'"
            ):
                await client.load_model(["/nowhere"])
        assert (await post(service.http, "/v1/load_model", LOAD, token=TRAINER))[0] == 403
        # The admin comes past the door, to where LoadModel is refused for want of allowed roots; and may score, too.
        assert (await post(service.http, "/v1/load_model", LOAD, token=ADMIN))[0] not in (401, 403)
        assert (await post(service.http, "/v1/score", BODY, token=ADMIN))[0] == 200


async def test_the_policy_streams_to_those_who_may_generate_and_takes_weights_from_the_admin_alone(
    tiny_model_path, tmp_path, monkeypatch
):
    path = tmp_path / "clients.toml"
    path.write_text(entry("eval", ["generate"], token=TRAINER) + entry("trainer", ["admin"], token=ADMIN))
    monkeypatch.setenv(AUTH_VARIABLE, str(path))
    server = make_policy(tiny_model_path)
    await server.start()
    try:
        await server.wait_ready()
        target = f"127.0.0.1:{server.port}"

        async def generated(token: str | None) -> int:
            async with PolicyClient(target, token=token) as client:
                prompts = [Prompt(group_id="g", prompt_ids=[5, 6], seed=1)]
                return len([rollout async for rollout in client.generate(prompts, Sampling(max_new_tokens=2))])

        async def pushed(token: str) -> grpc.StatusCode:
            async with open_channel(target, service=PolicyClient.full_name, retried_methods=(), token=token) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as error:
                    await policy_pb2_grpc.PolicyServiceStub(channel).UpdateWeights(iter([]), timeout=10)
                return error.value.code()

        assert await generated(TRAINER) == await generated(ADMIN) == 1
        with pytest.raises(UnauthenticatedError):
            await generated(None)
        assert await pushed(TRAINER) is grpc.StatusCode.PERMISSION_DENIED
        # The admin comes past the door: it is told that it has sent nothing.
        assert await pushed(ADMIN) is grpc.StatusCode.INVALID_ARGUMENT
    finally:
        await server.stop()


async def test_health_and_reflection_are_open_to_everyone(listed):
    async with secured_service() as service:

        def reflected() -> list[str]:
            with grpc.insecure_channel(service.target) as channel:
                return list(ProtoReflectionDescriptorDatabase(channel).get_services())

        assert "rlhf.v1.RewardService" in await asyncio.to_thread(reflected)
        async with RewardClient(service.target) as client:
            assert await client.is_serving()
        assert (await post(service.http, "/ready"))[0] == 200


async def test_a_rotated_token_is_taken_up_while_calls_run_and_none_fails(listed, shown):
    new = "the-next-token-of-the-trainer"
    async with secured_service() as service, RewardClient(service.target) as client:
        done, num_served = asyncio.Event(), 0

        async def call_on_and_on() -> None:
            nonlocal num_served
            while not done.is_set():
                await client.score([ITEM])
                num_served += 1

        callers = [asyncio.create_task(call_on_and_on()) for _ in range(4)]
        # Both are known, then the client shows the new one, then the old one is forgotten.
        replace(listed, entry("trainer", ["score"], token=TRAINER) + entry("trainer", ["score"], token=new))
        await asyncio.sleep(1.3)
        replace(shown, new)
        await asyncio.sleep(1.3)
        replace(listed, entry("trainer", ["score"], token=new))
        await asyncio.sleep(1.3)
        assert (await post(service.http, "/v1/score", BODY, token=TRAINER))[0] == 401
        served_before = num_served
        await asyncio.sleep(0.3)
        done.set()
        await asyncio.gather(*callers)
        assert num_served > served_before > 0


async def test_a_list_that_becomes_unusable_changes_nothing_until_it_is_mended(listed):
    async with secured_service() as service:
        replace(listed, 'clients = "none')
        await asyncio.sleep(1.1)
        assert (await post(service.http, "/v1/score", BODY, token=TRAINER))[0] == 200
        replace(listed, entry("other", ["score"], token="another-token"))
        await asyncio.sleep(1.1)
        assert (await post(service.http, "/v1/score", BODY, token=TRAINER))[0] == 401
        assert (await post(service.http, "/v1/score", BODY, token="another-token"))[0] == 200


async def test_a_list_that_cannot_be_used_ends_the_start(listed):
    listed.write_text("[[clients]]\nname = 'trainer'\nscopes = ['scroe']\n")
    with pytest.raises(ConfigError, match=r"clients\[0\] \('trainer'\): there is no scope 'scroe'; known: admin, "):
        async with secured_service():
            pass


@pytest.fixture
def authority() -> trustme.CA:
    return trustme.CA()


async def test_a_certificate_says_who_calls_and_what_it_may(authority, tmp_path, monkeypatch):
    """The server's own certificate, "localhost", is not in the list; of the clients, one may score and one may not."""
    clients = tmp_path / "clients.toml"
    clients.write_text(
        entry("trainer", ["score"], certificate="trainer.rlhf") + entry("watcher", ["watch"], certificate="watch.rlhf")
    )
    monkeypatch.setenv(AUTH_VARIABLE, str(clients))
    variables = {name: issue(authority, tmp_path / name, name) for name in ("localhost", "trainer.rlhf", "watch.rlhf")}
    for name, value in variables["localhost"].items():
        monkeypatch.setenv(name, value)
    async with secured_service() as service:
        expected = {"localhost": UnauthenticatedError, "trainer.rlhf": None, "watch.rlhf": PermissionDeniedError}
        statuses = {"localhost": 401, "trainer.rlhf": 200, "watch.rlhf": 403}
        for who, error in expected.items():
            for name, value in variables[who].items():
                monkeypatch.setenv(name, value)
            async with RewardClient(service.target) as client:
                if error is None:
                    assert isinstance((await client.score([ITEM])).results[0], Reward)
                else:
                    with pytest.raises(error):
                        await client.score([ITEM])
            tls = http_context(variables[who])
            assert (await post(service.http, "/v1/score", BODY, tls=tls))[0] == statuses[who]


async def test_logs_and_metrics_hold_no_token_and_no_text(listed, shown):
    """A process of its own at level debug, called with a known token and with one nobody knows, over both ways."""
    text, wrong = "what-the-prompt-says", "a-token-nobody-knows"
    command = [os.path.join(os.path.dirname(sys.executable), "rlhf-reward"), "--scorer.kind", "length"]
    command += ["--server.host", "127.0.0.1", "--server.port", "0", "--server.metrics_port", "0", "--http.port", "0"]
    command += ["--server.log_level", "debug", "--server.slow_call_seconds", "1e-9"]
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    lines: list[str] = []
    while not lines or '"serving"' not in lines[-1]:
        lines.append((await asyncio.wait_for(process.stderr.readline(), 60)).decode())
        assert lines[-1], lines
    reading = asyncio.create_task(process.stderr.read())
    events = {event["event"]: event for event in map(json.loads, lines)}
    async with RewardClient(f"127.0.0.1:{events['listening']['port']}") as client:
        await client.score([ScoreItem.text(text, text)])
        shown.write_text(wrong)
        await asyncio.sleep(1.1)
        with pytest.raises(UnauthenticatedError):
            await client.score([ScoreItem.text(text, text)])
    http = f"127.0.0.1:{events['listening over http']['port']}"
    body = {"items": [{"text": {"prompt": text, "completion": text}}]}
    assert [(await post(http, "/v1/score", body, token=token))[0] for token in (TRAINER, wrong)] == [200, 401]
    url = f"http://127.0.0.1:{events['listening']['metrics_port']}/metrics"
    metrics = (await asyncio.to_thread(urllib.request.urlopen, url)).read().decode()
    process.send_signal(signal.SIGTERM)
    log = "".join(lines) + (await reading).decode()
    assert await process.wait() == 0
    slow = [event for event in map(json.loads, log.splitlines()) if event["event"] == "slow call"]
    assert {(event["method"], event["caller"], event.get("items")) for event in slow} >= {("Score", "trainer", 1)}
    assert "tokens travel in the clear" in log
    assert 'code="UNAUTHENTICATED",method="Score"' in metrics
    for secret in (TRAINER, wrong, text):
        assert secret not in log
        assert secret not in metrics
