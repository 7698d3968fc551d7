"""Weight pushes that go wrong in every way, and many that go right, against a real policy service."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
import torch
from prometheus_client import CollectorRegistry

from rlhf.client.policy import PolicyClient
from rlhf.errors import InvalidRequestError, NotReadyError, OverloadedError, PreconditionError
from rlhf.models.loading import load_policy
from rlhf.rollout import Rollout, Sampling
from services.policy.config import ModelConfig, PolicyConfig, PolicyServerConfig
from services.policy.server import make_engine, make_server
from tests.integration.policy_pushing import Push, Weights, changed, flipped, manifest_of, model_with, send, weights_of
from tests.integration.test_policy_service import PROMPTS, Service, expected_logprobs, greedy_reference, serving

FOREVER = Sampling(max_new_tokens=400, temperature=0.0, stop_ids=(259,))
HALF_A_PUSH = """
import sys, time
import grpc
messages = open(sys.argv[2], "rb").read()
def stream():
    for size in map(int, sys.argv[3:]):
        global messages
        yield messages[:size]
        messages = messages[size:]
    print("sent", flush=True)
    time.sleep(60)
grpc.insecure_channel(sys.argv[1]).stream_unary("/rlhf.v1.PolicyService/UpdateWeights")(stream())
"""


@pytest_asyncio.fixture
async def service(tiny_model_path: Path) -> AsyncIterator[Service]:
    async with serving(tiny_model_path) as running:
        yield running


@pytest.fixture(scope="session")
def loaded(tiny_model_path: Path) -> Weights:
    """Version 0 of every service here."""
    return weights_of(load_policy(tiny_model_path, dtype="float32"))


@pytest.fixture(scope="session")
def first(loaded: Weights) -> Weights:
    """Other weights, a tenth of which are new."""
    return changed(loaded, 0.1, seed=1)


async def assert_serves(service: Service, path: Path, version: int, weights: Weights) -> None:
    """The service says that it serves these weights, and samples what a fresh model of them does."""
    served = await service.client.get_model()
    assert (served.policy_version, served.weights_digest) == (version, manifest_of(weights).digest)
    model = model_with(path, weights)
    rollouts = await service.generate(PROMPTS, Sampling(max_new_tokens=12, temperature=0.0, stop_ids=(259,)))
    for prompt in PROMPTS:
        rollout = rollouts[f"{prompt.group_id}/0"]
        assert rollout.completion_ids == greedy_reference(model, prompt, 12)
        assert rollout.policy_versions == [version] * 12
        torch.testing.assert_close(
            torch.tensor(rollout.logprobs), expected_logprobs(model, rollout, 1.0), atol=1e-4, rtol=0
        )


@pytest.fixture(params=["full", "sparse_patch"])
def push(request: pytest.FixtureRequest, loaded: Weights, first: Weights) -> Push:
    """A correct push of version 1, of either kind."""
    return Push(1, first, None if request.param == "full" else (0, loaded))


@pytest.mark.parametrize("fault", ["half", "order", "checksum"])
async def test_a_push_that_goes_wrong_changes_nothing_and_the_next_one_works(
    service, tiny_model_path, loaded, first, push, fault
):
    header, *chunks, commit = push.messages()
    assert len(chunks) > 2
    broken, word = {
        "half": ([header, *chunks[: len(chunks) // 2]], "before its commit"),
        "order": ([header, chunks[1], chunks[0], *chunks[2:], commit], r"offset_bytes is 20000, expected 0"),
        "checksum": (push.messages_of(flipped(push.payload, 25_000)), "digest|frame|elements past its end|step of 0"),
    }[fault]
    with pytest.raises(grpc.aio.AioRpcError, match=word) as caught:
        await send(service.target, broken)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    await assert_serves(service, tiny_model_path, 0, loaded)
    assert (await push.to(service)).policy_version == 1
    await assert_serves(service, tiny_model_path, 1, first)


async def test_a_sender_that_is_killed_half_way_changes_nothing_and_the_next_push_works(
    service, tiny_model_path, loaded, first, push, tmp_path
):
    header, *chunks, _ = push.messages()
    half = [header, *chunks[: len(chunks) // 2]]
    (tmp_path / "half").write_bytes(b"".join(half))
    sizes = map(str, map(len, half))
    sender = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HALF_A_PUSH, service.target, tmp_path / "half", *sizes, stdout=subprocess.PIPE
    )
    assert sender.stdout is not None
    assert await sender.stdout.readline() == b"sent\n"
    await asyncio.sleep(0.2)
    sender.kill()
    await sender.wait()
    for _ in range(50):
        try:
            await push.to(service)
            break
        except OverloadedError:  # until the service has seen the broken connection
            await asyncio.sleep(0.1)
    await assert_serves(service, tiny_model_path, 1, first)
    assert (
        service.metric("rlhf_policy_push_failures_total", reason="cancelled")
        + service.metric("rlhf_policy_push_failures_total", reason="invalid_argument")
        == 1
    )


async def test_a_patch_of_other_weights_is_refused_with_the_version_that_is_held(
    service, tiny_model_path, loaded, first
):
    second = changed(first, 0.1, seed=2)
    with pytest.raises(PreconditionError, match=r"one of version 1 .* this server is at version 0") as caught:
        await Push(2, second, (1, first)).to(service)
    assert manifest_of(loaded).digest in str(caught.value)
    await assert_serves(service, tiny_model_path, 0, loaded)
    await Push(2, second).to(service)
    await assert_serves(service, tiny_model_path, 2, second)


async def test_of_two_pushes_at_once_one_takes_effect(service, tiny_model_path, first, push):
    header, *chunks, _ = push.messages()
    started = asyncio.create_task(send(service.target, [header, *chunks], hang=True))
    await asyncio.sleep(0.2)
    other = changed(first, 0.1, seed=3)
    with pytest.raises(OverloadedError, match="a push of policy version 1 is under way"):
        await Push(7, other).to(service)
    started.cancel()
    await asyncio.gather(started, return_exceptions=True)
    for _ in range(300):
        if service.metric("rlhf_policy_push_failures_total", reason="cancelled"):
            break
        await asyncio.sleep(0.01)
    results = await asyncio.gather(push.to(service), Push(7, other).to(service), return_exceptions=True)
    refused = [result for result in results if isinstance(result, BaseException)]
    for error in refused:
        assert isinstance(error, OverloadedError | PreconditionError)
    assert len(refused) < 2
    version = (await service.client.get_model()).policy_version
    await assert_serves(service, tiny_model_path, version, other if version == 7 else first)


async def test_a_push_to_a_service_that_loads_is_refused_and_works_when_it_has_loaded(tiny_model_path, first):
    config = PolicyConfig(
        server=PolicyServerConfig(host="127.0.0.1", port=0, metrics_port=0, drain_seconds=0.0),
        model=ModelConfig(path=tiny_model_path, dtype="float32", engine="transformers"),
    )
    server = make_server(config, make_engine(config), CollectorRegistry())
    await server.start()
    client = PolicyClient(f"127.0.0.1:{server.port}")
    push = Push(1, first)
    with pytest.raises(NotReadyError, match="still loading"):
        await client.update_weights(push.header, push.payload)
    await server.wait_ready()
    assert (await client.update_weights(push.header, push.payload)).policy_version == 1
    await client.close()
    await server.stop()


@pytest.mark.parametrize("wrong", ["shape", "name", "fewer"])
async def test_another_models_tensors_are_refused_by_name(service, tiny_model_path, loaded, first, wrong):
    name, *_, last = loaded
    other = {
        "shape": {**first, name: first[name][:-1].contiguous()},
        "name": {**first, "lm_head.other": first[last]},
        "fewer": {key: tensor for key, tensor in first.items() if key != last},
    }[wrong]
    with pytest.raises(InvalidRequestError, match={"shape": name, "name": "lm_head.other", "fewer": last}[wrong]):
        await Push(1, other).to(service)
    await assert_serves(service, tiny_model_path, 0, loaded)
    await Push(1, first, (0, loaded)).to(service)
    await assert_serves(service, tiny_model_path, 1, first)


async def test_over_a_push_each_token_carries_its_version_and_every_logprob_is_that_versions(
    service, tiny_model_path, loaded, first, push
):
    prompt = PROMPTS[1]
    running = asyncio.create_task(service.generate([prompt], FOREVER))
    await service.wait_in_flight(True)
    await asyncio.sleep(0.1)
    await push.to(service)
    rollout = (await running)["g1/0"]
    switch = rollout.policy_versions.index(1)
    assert rollout.policy_versions == [0] * switch + [1] * (400 - switch)
    assert 0 < switch < 400
    for weights, begin, end in [(loaded, 0, switch), (first, switch, 400)]:
        part = replace(
            rollout,
            prompt_ids=prompt.prompt_ids + rollout.completion_ids[:begin],
            completion_ids=rollout.completion_ids[begin:end],
        )
        assert isinstance(part, Rollout)
        expected = expected_logprobs(model_with(tiny_model_path, weights), part, 1.0)
        torch.testing.assert_close(torch.tensor(rollout.logprobs[begin:end]), expected, atol=1e-4, rtol=0)


async def test_after_200_random_patches_digest_and_output_are_those_of_the_trainers_weights(
    service, tiny_model_path, loaded
):
    weights = loaded
    for version in range(1, 201):
        after = changed(weights, (0.0005, 0.01, 0.1)[version % 3], seed=version)
        if version % 50 == 0:  # nothing but the version changes
            after = weights
        await Push(version, after, (version - 1, weights)).to(service)
        assert (await service.client.get_model()).weights_digest == manifest_of(after).digest
        weights = after
    await assert_serves(service, tiny_model_path, 200, weights)
    assert service.metric("rlhf_policy_pushes_total", encoding="sparse_patch") == 200
    assert service.metric("rlhf_policy_pushes_total", encoding="full") == 0
