"""The policy service as a process, with real vLLM and the small real model; in float32, where vLLM is exact.

One server serves the whole file; each test leaves it with the weights it started with. The exhaustive tests start
others, which takes a minute each: what a fresh engine on a checkpoint of perturbed weights samples is, to the last bit,
what the first one must sample once those weights are pushed to it.
"""

import asyncio
import copy
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
import torch
from transformers import AutoTokenizer

from rlhf.client import codec
from rlhf.client.policy import PolicyClient
from rlhf.errors import NotReadyError
from rlhf.learning.config import OptimizerConfig
from rlhf.learning.snapshot import WeightsSnapshot, take_snapshot
from rlhf.learning.trained_model import TrainedModel
from rlhf.models.loading import load_policy
from rlhf.models.policy_model import PolicyModel, completion_logprobs
from rlhf.models.sequences import pad_sequences
from rlhf.models.weights import checkpoint_manifest, checkpoint_tensors, model_manifest, tensor_bytes
from rlhf.rollout import Prompt, Rollout, Sampling
from rlhf.v1 import policy_pb2, policy_pb2_grpc
from rlhf.weights import Encoding, PushHeader
from tests.support.vllm_server import Server

pytestmark = pytest.mark.vllm

TOLERANCE = 1e-4  # nats; vLLM and transformers differ by 5e-5 at most in float32
GREEDY = Sampling(max_new_tokens=48, temperature=0.0)
QUESTIONS = (
    "What is the capital of France?",
    "Name three colours.",
    "Write a sentence about the sea.",
    "How do birds fly?",
    "Count from one to ten.",
    "Who wrote Hamlet?",
    "Give me a recipe for bread.",
    "Why is the sky blue?",
)


@dataclass
class Perturbed:
    """Weights that are not the server's."""

    path: Path
    model: torch.nn.Module


@dataclass
class Fresh:
    """What an engine samples that was started with the perturbed weights."""

    rollouts: dict[str, Rollout]
    alone: list[Rollout]
    """Of the prompts that are sampled one at a time."""
    orphan: int
    """The engine process of that fresh engine, whose front end was killed with SIGKILL."""


@pytest.fixture(scope="module")
def base(smollm_path: Path) -> torch.nn.Module:
    return load_policy(smollm_path, dtype="float32")


@pytest.fixture(scope="module")
def prompts(smollm_path: Path) -> list[Prompt]:
    tokenizer = AutoTokenizer.from_pretrained(smollm_path)
    return [
        Prompt(
            group_id=f"g{index}",
            prompt_ids=tokenizer.apply_chat_template(
                [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
            ),
            seed=index,
        )
        for index, question in enumerate(QUESTIONS)
    ]


@pytest.fixture(scope="module")
def perturbed(smollm_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Perturbed:
    path = tmp_path_factory.mktemp("perturbed")
    model = load_policy(smollm_path, dtype="float32")
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1 * parameter.std())
    model.save_pretrained(path)
    AutoTokenizer.from_pretrained(smollm_path).save_pretrained(path)
    return Perturbed(path, model)


@pytest.fixture(scope="module")
def fresh(perturbed: Perturbed, prompts: list[Prompt]) -> Fresh:
    server = Server(perturbed.path, perturbed.path / "server.log")
    try:
        server.wait_ready()
        rollouts = asyncio.run(generate(server, prompts, GREEDY))
        alone = asyncio.run(greedy_alone(server, prompts))
        orphan = server.engine_pid()
    finally:
        server.end(signal.SIGKILL)
    return Fresh(rollouts, alone, orphan)


@pytest.fixture(scope="module")
def server(smollm_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(smollm_path, tmp_path_factory.mktemp("server") / "server.log")
    server.wait_ready()
    yield server
    if server.process.poll() is None:
        server.end(signal.SIGKILL)


async def generate(server: Server, prompts: list[Prompt], sampling: Sampling, version: int = 0) -> dict[str, Rollout]:
    async with PolicyClient(server.target) as client:
        rollouts = client.generate(prompts, sampling, min_policy_version=version)
        return {rollout.rollout_id: rollout async for rollout in rollouts}


async def greedy_ids(server: Server, prompts: list[Prompt]) -> dict[str, list[int]]:
    """Greedy completions alone: the log-probabilities' last bits depend on what else is in a batch."""
    rollouts = await generate(server, prompts, GREEDY)
    return {name: rollout.completion_ids for name, rollout in rollouts.items()}


async def greedy_alone(server: Server, prompts: list[Prompt]) -> list[Rollout]:
    """Greedy completions of two prompts, one after the other: exact to the last bit, for nothing shares their batch."""
    return [rollout for prompt in prompts[:2] for rollout in (await generate(server, [prompt], GREEDY)).values()]


async def push_snapshot(server: Server, snapshot: WeightsSnapshot, encoding: Encoding) -> None:
    async with PolicyClient(server.target) as client:
        result = await client.update_weights(snapshot.header(encoding), snapshot.payload(encoding))
        served = await client.get_model()
    assert (result.policy_version, result.weights_digest) == (snapshot.policy_version, snapshot.digest)
    assert (served.policy_version, served.weights_digest) == (snapshot.policy_version, snapshot.digest)


async def assert_as_fresh(server: Server, fresh: Fresh, prompts: list[Prompt], version: int) -> None:
    """Asserts that the server samples what a fresh engine on the perturbed weights does."""
    after = await generate(server, prompts, GREEDY, version=version)
    for name, expected in fresh.rollouts.items():
        assert after[name].completion_ids == expected.completion_ids
        assert after[name].policy_versions == [version] * len(expected.completion_ids)
        torch.testing.assert_close(after[name].logprobs, expected.logprobs, atol=TOLERANCE, rtol=0)
    assert_same_bits(await greedy_alone(server, prompts), fresh.alone)


def assert_same_bits(found: list[Rollout], expected: list[Rollout]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert (one.completion_ids, one.logprobs) == (other.completion_ids, other.logprobs)


def trained(model: torch.nn.Module) -> TrainedModel:
    """A model as the trainer holds it; a copy, to be changed."""
    return TrainedModel("policy", PolicyModel(copy.deepcopy(model)), OptimizerConfig(), total_steps=1)


@torch.no_grad()
def change(model: TrainedModel, fraction: float, generator: torch.Generator, num_tensors: int | None = None) -> None:
    """Moves a part of the elements, of all tensors or of some drawn ones, to a neighbouring number."""
    parameters = list(model.module.parameters())
    if num_tensors is not None:
        drawn = torch.randperm(len(parameters), generator=generator)[:num_tensors]
        parameters = [parameters[index] for index in drawn]
    for parameter in parameters:
        chosen = torch.rand(parameter.shape, generator=generator) < fraction
        parameter.view(torch.int32).add_(chosen.to(torch.int32))


async def push(server: Server, version: int, model: torch.nn.Module) -> float:
    payload = (tensor_bytes(tensor) for _, tensor in checkpoint_tensors(model))
    async with PolicyClient(server.target) as client:
        return (await client.update_weights(PushHeader.full(version, model_manifest(model)), payload)).pause_seconds


async def served_version(server: Server) -> int:
    async with PolicyClient(server.target) as client:
        return (await client.get_model()).policy_version


async def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Returns once a condition holds; fails after some time."""
    for _ in range(int(seconds / 0.1)):
        if condition():
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"it did not come true within {seconds:g} s")


@torch.no_grad()
def assert_logprobs(model: torch.nn.Module, rollouts: Iterable[Rollout], temperature: float, version: int = 0) -> None:
    """Asserts that the log-probabilities of all tokens from `version` on are those of a model in transformers."""
    prompts, completions, logprobs = [], [], []
    for rollout in rollouts:
        start = rollout.policy_versions.index(version)
        prompts.append(rollout.prompt_ids + rollout.completion_ids[:start])
        completions.append(rollout.completion_ids[start:])
        logprobs += rollout.logprobs[start:]
    sequences = pad_sequences(prompts, completions)
    expected = completion_logprobs(model, sequences, temperature)[sequences.completion_mask]
    torch.testing.assert_close(torch.tensor(logprobs), expected, atol=TOLERANCE, rtol=0)


async def test_log_probabilities_are_those_of_transformers_after_temperature(server, base, prompts):
    sampled = await generate(server, prompts, Sampling(max_new_tokens=24, temperature=0.7, completions_per_prompt=2))
    assert sampled.keys() == {f"g{prompt}/{index}" for prompt in range(8) for index in range(2)}
    assert_logprobs(base, sampled.values(), 0.7)
    greedy = await generate(server, prompts, GREEDY)
    assert_logprobs(base, greedy.values(), 1.0)
    for rollout in [*sampled.values(), *greedy.values()]:
        assert rollout.policy_versions == [0] * len(rollout.completion_ids)
        assert rollout.finish_reason == ("stop" if rollout.completion_ids[-1] == 2 else "length")


async def test_pushed_weights_are_the_ones_that_sample(server, base, perturbed, prompts):
    before = await greedy_ids(server, prompts)
    await push(server, 1, perturbed.model)
    async with PolicyClient(server.target) as client:
        model = await client.get_model()
    assert (model.policy_version, model.weights_digest) == (1, checkpoint_manifest(perturbed.path, "float32").digest)
    after = await generate(server, prompts, GREEDY, version=1)
    assert all(each.policy_versions == [1] * len(each.completion_ids) for each in after.values())
    assert_logprobs(perturbed.model, after.values(), 1.0, version=1)
    assert any(rollout.completion_ids != before[name] for name, rollout in after.items())
    await push(server, 2, base)
    assert await greedy_ids(server, prompts) == before


@pytest.mark.exhaustive
async def test_pushed_weights_sample_what_a_fresh_engine_on_the_same_weights_samples(
    fresh, server, base, perturbed, prompts
):
    await push(server, 101, perturbed.model)
    await assert_as_fresh(server, fresh, prompts, 101)
    assert_logprobs(perturbed.model, fresh.rollouts.values(), 1.0)
    await push(server, 102, base)


async def patch_to_perturbed(server: Server, perturbed: Perturbed, version: int) -> None:
    """Pushes a model that differs from the perturbed one in 1 % of all elements, then the patch to that one.

    The elements that differ have half of their value more, so that it is another model indeed.
    """
    model = trained(perturbed.model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.add_(parameter * 0.5 * (torch.rand(parameter.shape, generator=generator) < 0.01))
    other = take_snapshot(model, version, None, patches=True)
    await push_snapshot(server, other, "full")
    target = take_snapshot(trained(perturbed.model), version + 1, other, patches=True)
    assert target.patch is not None
    assert 0 < target.patch.num_bytes < target.manifest.num_bytes / 10
    await push_snapshot(server, target, "sparse_patch")


async def test_patched_weights_sample_what_pushed_ones_do(server, base, perturbed, prompts):
    await push(server, 3, perturbed.model)
    pushed = await greedy_alone(server, prompts)
    await patch_to_perturbed(server, perturbed, 4)
    patched = await greedy_alone(server, prompts)
    assert {version for rollout in patched for version in rollout.policy_versions} == {5}
    assert_same_bits(patched, pushed)
    assert_logprobs(perturbed.model, patched, 1.0, version=5)
    await push(server, 6, base)


@pytest.mark.exhaustive
async def test_patched_weights_sample_what_a_fresh_engine_on_the_same_weights_samples(
    fresh, server, base, perturbed, prompts
):
    await patch_to_perturbed(server, perturbed, 103)
    await assert_as_fresh(server, fresh, prompts, 104)
    await push(server, 105, base)


@pytest.mark.exhaustive
async def test_after_200_patches_the_engine_has_the_trainers_weights(server, base, perturbed, prompts):
    model, generator = trained(perturbed.model), torch.Generator().manual_seed(2)
    snapshot = take_snapshot(model, 1000, None, patches=True)
    await push_snapshot(server, snapshot, "full")
    for number in range(200):
        change(model, 0.02, generator, num_tensors=3)
        snapshot = take_snapshot(model, 1001 + number, snapshot, patches=True)
        await push_snapshot(server, snapshot, "sparse_patch")
    patched = await greedy_alone(server, prompts)
    # A full push is exact, as the tests above show.
    await push_snapshot(server, take_snapshot(model, 2000, None, patches=False), "full")
    full = await greedy_alone(server, prompts)
    assert_same_bits(patched, full)
    await push(server, 2001, base)


@pytest.mark.exhaustive
async def test_pushes_are_as_exact_where_layers_compute_in_place(smollm_path, perturbed, prompts, tmp_path):
    """Two pushes are compared: the fresh engine's packed copies give other sums, in their last bits."""
    server = Server(smollm_path, tmp_path / "server.log", "--vllm.cpu_weights", "in_place")
    try:
        server.wait_ready()
        await push(server, 1, perturbed.model)
        full = await greedy_alone(server, prompts)
        await patch_to_perturbed(server, perturbed, 2)
        patched = await generate(server, prompts, GREEDY, version=3)
        alone = await greedy_alone(server, prompts)
    finally:
        server.end(signal.SIGKILL)
    assert [rollout.logprobs for rollout in alone] == [rollout.logprobs for rollout in full]
    assert_logprobs(perturbed.model, patched.values(), 1.0, version=3)


async def test_requests_in_flight_survive_a_push_and_each_token_names_its_version(server, base, perturbed, prompts):
    before = await served_version(server)
    long = Sampling(max_new_tokens=120, temperature=1.0, stop_ids=(0,))
    running = asyncio.create_task(generate(server, prompts, long))
    await until(lambda: server.metric("vllm:num_requests_running") == 8)
    await push(server, 7, perturbed.model)
    rollouts = (await running).values()
    for rollout in rollouts:
        assert rollout.policy_versions == sorted(rollout.policy_versions)
        assert set(rollout.policy_versions) <= {before, 7}
    switched = [rollout for rollout in rollouts if len(set(rollout.policy_versions)) == 2]
    assert switched
    assert_logprobs(perturbed.model, switched, 1.0, version=7)
    await push(server, 8, base)


async def test_a_push_that_breaks_off_or_is_corrupted_changes_nothing(server, base, perturbed, prompts):
    before, version = await greedy_ids(server, prompts[:2]), await served_version(server)
    manifest = model_manifest(perturbed.model)
    first = bytes(tensor_bytes(next(checkpoint_tensors(perturbed.model))[1]))[: 8 * 2**20]

    async def stream(data: bytes) -> AsyncIterator[policy_pb2.UpdateWeightsRequest]:
        header = codec.encode_header(PushHeader.full(99, manifest))
        yield policy_pb2.UpdateWeightsRequest(header=header)
        yield policy_pb2.UpdateWeightsRequest(chunk=policy_pb2.WeightsChunk(offset_bytes=0, data=data))
        yield policy_pb2.UpdateWeightsRequest(commit=policy_pb2.WeightsCommit())

    async with grpc.aio.insecure_channel(server.target) as channel:
        with pytest.raises(grpc.aio.AioRpcError, match="the commit came after") as caught:
            await policy_pb2_grpc.PolicyServiceStub(channel).UpdateWeights(stream(first), timeout=60)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert await served_version(server) == version
    assert await greedy_ids(server, prompts[:2]) == before


async def test_a_cancelled_call_frees_the_engine(server, prompts):
    call = asyncio.create_task(generate(server, prompts, Sampling(max_new_tokens=400, stop_ids=(0,))))
    await until(lambda: server.metric("vllm:num_requests_running") == 8)
    call.cancel()
    await until(lambda: server.metric("vllm:num_requests_running") == 0)
    assert server.metric("rlhf_policy_rollouts_in_flight") == 0


@pytest.mark.exhaustive
def test_an_engine_does_not_outlive_a_front_end_that_was_killed(fresh):
    assert not os.path.exists(f"/proc/{fresh.orphan}")


async def test_a_killed_engine_fails_calls_within_seconds_and_ends_the_process_for_its_supervisor(server, prompts):
    call = asyncio.create_task(generate(server, prompts, Sampling(max_new_tokens=400, stop_ids=(0,))))
    await until(lambda: server.metric("vllm:num_requests_running") == 8)
    killed = time.monotonic()
    os.kill(server.engine_pid(), signal.SIGKILL)
    with pytest.raises(NotReadyError, match=r"vLLM's engine process died\. This process exits with code 1"):
        await call
    assert time.monotonic() - killed < 5
    assert await asyncio.to_thread(server.process.wait, 30) == 1
    last = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
    assert any("engine process died" in entry.get("error", "") for entry in last)
