"""The policy service through a real socket: the transformers engine, and the tiny random model in float32."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
import torch
from prometheus_client import CollectorRegistry

from rlhf.client import codec
from rlhf.client.policy import PolicyClient
from rlhf.errors import ConfigError, InvalidRequestError, OverloadedError, PreconditionError
from rlhf.models.loading import load_policy
from rlhf.models.policy_model import completion_logprobs
from rlhf.models.sequences import pad_sequences
from rlhf.models.weights import checkpoint_manifest, checkpoint_tensors, model_manifest, tensor_bytes
from rlhf.rollout import Prompt, Rollout, Sampling
from rlhf.v1 import policy_pb2, policy_pb2_grpc
from rlhf.weights import PushHeader, WeightsManifest
from services.policy.config import LimitsConfig, ModelConfig, PolicyConfig, PolicyServerConfig, TransformersConfig
from services.policy.server import make_engine, make_server

PROMPTS = [
    Prompt(group_id=f"g{index}", prompt_ids=list(range(5, 6 + 3 * index)), seed=10 * index) for index in range(4)
]
GREEDY = Sampling(max_new_tokens=24, temperature=0.0)


class Service:
    """The running service, its client, and its metrics."""

    def __init__(self, port: int, registry: CollectorRegistry) -> None:
        self.target = f"127.0.0.1:{port}"
        self.client = PolicyClient(self.target)
        self.registry = registry

    async def generate(self, prompts: list[Prompt], sampling: Sampling, **options: object) -> dict[str, Rollout]:
        return {rollout.rollout_id: rollout async for rollout in self.client.generate(prompts, sampling, **options)}

    async def greedy_ids(self) -> dict[str, list[int]]:
        """Greedy completions alone: the log-probabilities' last bits depend on what else is in a batch."""
        rollouts = await self.generate(PROMPTS, GREEDY)
        return {name: rollout.completion_ids for name, rollout in rollouts.items()}

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0

    async def wait_in_flight(self, wanted: bool) -> None:
        """Returns once there are rollouts in flight, or none any more; fails after 3 s."""
        for _ in range(300):
            if bool(self.metric("rlhf_policy_rollouts_in_flight")) == wanted:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"after 3 s there are {'no' if wanted else 'still'} rollouts in flight")


@asynccontextmanager
async def serving(path: Path, transformers: TransformersConfig | None = None) -> AsyncIterator[Service]:
    config = PolicyConfig(
        server=PolicyServerConfig(host="127.0.0.1", port=0, metrics_port=0, drain_seconds=0.0),
        model=ModelConfig(path=path, dtype="float32", engine="transformers"),
        transformers=transformers or TransformersConfig(),
        limits=LimitsConfig(max_prompts=8, max_in_flight=16, push_idle_seconds=0.5),
    )
    registry = CollectorRegistry()
    server = make_server(config, make_engine(config), registry)
    await server.start()
    await server.wait_ready()
    running = Service(server.port, registry)
    yield running
    await running.client.close()
    await server.stop()


@pytest_asyncio.fixture
async def service(tiny_model_path: Path) -> AsyncIterator[Service]:
    async with serving(tiny_model_path) as running:
        yield running


def perturbed(path: Path, scale: float = 0.05) -> torch.nn.Module:
    """The model in a folder with noise added to every weight."""
    model = load_policy(path, dtype="float32")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return model


def payload(model: torch.nn.Module) -> Iterator[memoryview]:
    return (tensor_bytes(tensor) for _, tensor in checkpoint_tensors(model))


async def push(service: Service, version: int, model: torch.nn.Module) -> float:
    result = await service.client.update_weights(PushHeader.full(version, model_manifest(model)), payload(model))
    return result.pause_seconds


def expected_logprobs(model: torch.nn.Module, rollout: Rollout, temperature: float) -> torch.Tensor:
    return completion_logprobs(model, pad_sequences([rollout.prompt_ids], [rollout.completion_ids]), temperature)[0]


def greedy_reference(model: torch.nn.Module, prompt: Prompt, num_tokens: int) -> list[int]:
    """Greedy tokens by whole forward passes, without a cache."""
    ids = list(prompt.prompt_ids)
    for _ in range(num_tokens):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt.prompt_ids) :]


async def test_rollouts_carry_the_log_probabilities_of_the_distribution_they_were_drawn_from(service, tiny_model_path):
    sampling = Sampling(max_new_tokens=20, temperature=0.7, completions_per_prompt=3)
    rollouts = await service.generate(PROMPTS, sampling)
    assert rollouts.keys() == {f"g{prompt}/{index}" for prompt in range(4) for index in range(3)}
    model = load_policy(tiny_model_path, dtype="float32")
    for rollout in rollouts.values():
        torch.testing.assert_close(
            torch.tensor(rollout.logprobs), expected_logprobs(model, rollout, 0.7), atol=1e-4, rtol=0
        )
        assert rollout.policy_versions == [0] * len(rollout.completion_ids)
    assert service.metric("rlhf_policy_completion_tokens_total") == sum(
        len(rollout.completion_ids) for rollout in rollouts.values()
    )


async def test_greedy_tokens_are_those_of_a_plain_forward_pass(service, tiny_model_path):
    model = load_policy(tiny_model_path, dtype="float32")
    rollouts = await service.generate(PROMPTS, Sampling(max_new_tokens=24, temperature=0.0, stop_ids=(259,)))
    for prompt in PROMPTS:
        rollout = rollouts[f"{prompt.group_id}/0"]
        assert rollout.completion_ids == greedy_reference(model, prompt, len(rollout.completion_ids))
        logprobs = expected_logprobs(model, rollout, 1.0)
        torch.testing.assert_close(torch.tensor(rollout.logprobs), logprobs, atol=1e-4, rtol=0)


async def test_equal_seeds_draw_equal_tokens_and_completion_i_has_the_seed_of_a_request_with_seed_plus_i(service):
    prompt = Prompt(group_id="a", prompt_ids=[7, 8, 9], seed=40)
    two = await service.generate([prompt], Sampling(max_new_tokens=16, completions_per_prompt=2))
    second = Prompt(group_id="b", prompt_ids=[7, 8, 9], seed=41)
    one = await service.generate([second], Sampling(max_new_tokens=16))
    assert two["a/1"].completion_ids == one["b/0"].completion_ids
    assert two["a/0"].completion_ids != two["a/1"].completion_ids


async def test_one_at_a_time_no_completion_depends_on_the_others_not_even_in_its_last_bits(tiny_model_path):
    sampling = Sampling(max_new_tokens=12, completions_per_prompt=2)
    async with serving(tiny_model_path, TransformersConfig(max_num_seqs=1)) as service:
        together = await service.generate(PROMPTS, sampling)
        alone = await service.generate(PROMPTS[2:3], sampling)
    assert len(together) == 8
    assert len(alone) == 2
    assert alone.items() <= together.items()


async def test_a_stop_id_ends_a_completion_and_is_its_last_token(service):
    whole = (await service.generate(PROMPTS[:1], Sampling(max_new_tokens=8, temperature=0.0, stop_ids=(259,))))["g0/0"]
    stop = whole.completion_ids[3]
    ended = (await service.generate(PROMPTS[:1], Sampling(max_new_tokens=8, temperature=0.0, stop_ids=(stop,))))["g0/0"]
    first = whole.completion_ids.index(stop)
    assert ended.completion_ids == whole.completion_ids[: first + 1]
    assert ended.finish_reason == "stop"
    assert whole.finish_reason == "length"


async def test_pushed_weights_are_the_ones_that_sample_and_their_digest_is_the_checkpoints(
    service, tiny_model_path, tmp_path
):
    before = await service.client.get_model()
    assert before.policy_version == 0
    assert before.weights_digest == checkpoint_manifest(tiny_model_path, "float32").digest
    model = perturbed(tiny_model_path)
    model.save_pretrained(tmp_path)
    await push(service, 3, model)
    after = await service.client.get_model()
    assert (after.policy_version, after.weights_digest) == (3, checkpoint_manifest(tmp_path, "float32").digest)
    rollouts = await service.generate(PROMPTS, GREEDY, min_policy_version=3)
    for prompt in PROMPTS:
        rollout = rollouts[f"{prompt.group_id}/0"]
        assert rollout.completion_ids == greedy_reference(model, prompt, len(rollout.completion_ids))
        assert rollout.policy_versions == [3] * len(rollout.completion_ids)
    assert service.metric("rlhf_policy_version") == 3


async def test_a_push_of_what_is_served_already_is_answered_without_a_pause(service, tiny_model_path):
    model = perturbed(tiny_model_path)
    await push(service, 1, model)
    assert await push(service, 1, model) == 0.0
    assert service.metric("rlhf_policy_pushes_total", encoding="full") == 1


async def test_requests_in_flight_survive_a_push_and_each_token_names_its_version(service, tiny_model_path):
    model = perturbed(tiny_model_path)
    prompt = PROMPTS[1]
    sampling = Sampling(max_new_tokens=400, temperature=0.0, stop_ids=(259,))
    running = asyncio.create_task(service.generate([prompt], sampling))
    await service.wait_in_flight(True)
    await push(service, 1, model)
    rollout = (await running)["g1/0"]
    assert len(rollout.completion_ids) == 400
    assert rollout.policy_versions == sorted(rollout.policy_versions)
    switch = rollout.policy_versions.index(1)
    assert 0 < switch < 400
    # From the switch on, tokens and log-probabilities are those of the new weights over everything so far.
    after = Rollout(
        rollout_id="",
        group_id="",
        prompt_ids=prompt.prompt_ids + rollout.completion_ids[:switch],
        completion_ids=rollout.completion_ids[switch:],
        logprobs=[],
        policy_versions=[],
        finish_reason="length",
    )
    expected = expected_logprobs(model, after, 1.0)
    torch.testing.assert_close(torch.tensor(rollout.logprobs[switch:]), expected, atol=1e-4, rtol=0)


def push_messages(version: int, manifest: WeightsManifest, data: bytes) -> list[policy_pb2.UpdateWeightsRequest]:
    header = codec.encode_header(PushHeader.full(version, manifest))
    chunk = policy_pb2.WeightsChunk(offset_bytes=0, data=data)
    return [
        policy_pb2.UpdateWeightsRequest(header=header),
        policy_pb2.UpdateWeightsRequest(chunk=chunk),
        policy_pb2.UpdateWeightsRequest(commit=policy_pb2.WeightsCommit()),
    ]


async def send(target: str, messages: list[policy_pb2.UpdateWeightsRequest], *, hang: bool = False) -> None:
    """Pushes raw messages; with `hang` the stream stays open after them."""

    async def stream() -> AsyncIterator[policy_pb2.UpdateWeightsRequest]:
        for message in messages:
            yield message
        if hang:
            await asyncio.sleep(60)

    async with grpc.aio.insecure_channel(target) as channel:
        await policy_pb2_grpc.PolicyServiceStub(channel).UpdateWeights(stream(), timeout=20)


async def test_a_push_that_is_broken_anywhere_changes_nothing_and_the_next_one_works(service, tiny_model_path):
    model = perturbed(tiny_model_path)
    manifest = model_manifest(model)
    data = b"".join(payload(model))
    header, chunk, commit = push_messages(1, manifest, data)
    flipped = push_messages(1, manifest, data[:1000] + bytes([data[1000] ^ 1]) + data[1001:])
    before = await service.greedy_ids()
    for messages, word in [
        ([header, chunk], "before its commit"),
        ([header, commit], "after 0 of"),
        ([chunk, commit], "first part"),
        ([header, header], "second header"),
        ([header, *push_messages(1, manifest, data[:-4])[1:]], "of"),
        ([header, *push_messages(1, manifest, data + b"1234")[1:]], "more than"),
        (flipped, "digest"),
        ([policy_pb2.UpdateWeightsRequest()], "no part"),
        ([], "before its commit"),
    ]:
        with pytest.raises(grpc.aio.AioRpcError, match=word) as caught:
            await send(service.target, messages)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (await service.client.get_model()).policy_version == 0
    assert await service.greedy_ids() == before
    await push(service, 1, model)
    assert (await service.client.get_model()).policy_version == 1


async def test_a_push_that_stalls_is_given_up_and_refuses_others_only_until_then(service, tiny_model_path):
    model = perturbed(tiny_model_path)
    header = push_messages(1, model_manifest(model), b"1")[0]
    stalled = asyncio.create_task(send(service.target, [header], hang=True))
    await asyncio.sleep(0.2)
    with pytest.raises(OverloadedError, match="push of policy version 1 is under way"):
        await push(service, 2, model)
    with pytest.raises(grpc.aio.AioRpcError, match=r"nothing came for 0\.5 s"):
        await stalled
    await push(service, 2, model)


async def test_a_cancelled_call_frees_the_engine(service):
    stream = service.client.generate(PROMPTS, Sampling(max_new_tokens=490, completions_per_prompt=4, stop_ids=(259,)))
    reading = asyncio.create_task(anext(stream))
    await service.wait_in_flight(True)
    reading.cancel()
    await service.wait_in_flight(False)
    assert service.metric("rlhf_policy_rollouts_total", finish_reason="length") == 0


async def test_a_call_above_what_may_be_in_flight_is_refused_at_once_and_the_others_go_on(service):
    long = Sampling(max_new_tokens=300, completions_per_prompt=4, stop_ids=(259,))
    running = asyncio.create_task(service.generate(PROMPTS, long))
    await service.wait_in_flight(True)
    with pytest.raises(OverloadedError, match="16 completions are in flight"):
        await service.generate(PROMPTS[:1], GREEDY)
    assert len(await running) == 16


async def test_weights_older_than_the_call_asks_for_are_refused(service):
    with pytest.raises(PreconditionError, match=r"min_policy_version is 2, the policy serves version 0; push"):
        await service.generate(PROMPTS, GREEDY, min_policy_version=2)


async def test_another_tokenizers_ids_are_refused(service):
    with pytest.raises(InvalidRequestError, match="tokenizer_digest is 'other'"):
        await service.generate(PROMPTS, GREEDY, tokenizer_digest="other")


async def test_top_p_and_top_k_are_refused_with_the_reason(service):
    async with grpc.aio.insecure_channel(service.target) as channel:
        stub = policy_pb2_grpc.PolicyServiceStub(channel)
        for sampling in (
            policy_pb2.SamplingParams(max_new_tokens=1, top_p=0.9),
            policy_pb2.SamplingParams(max_new_tokens=1, top_k=50),
        ):
            request = policy_pb2.GenerateRequest(prompts=[codec.encode_prompt(PROMPTS[0])], sampling=sampling)
            with pytest.raises(grpc.aio.AioRpcError, match="another distribution") as caught:
                await anext(aiter(stub.Generate(request, timeout=5)))
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_more_tokens_than_the_model_takes_are_refused_before_serving(tiny_model_path):
    config = PolicyConfig(
        server=PolicyServerConfig(host="127.0.0.1", port=0, metrics_port=0, drain_seconds=0.0),
        model=ModelConfig(path=tiny_model_path, dtype="float32", engine="transformers", max_sequence_tokens=513),
    )
    server = make_server(config, make_engine(config), CollectorRegistry())
    await server.start()
    with pytest.raises(ConfigError, match=r"model\.max_sequence_tokens is 513, the model at .* takes 512; lower it"):
        await server.wait_ready()
    await server.stop()
