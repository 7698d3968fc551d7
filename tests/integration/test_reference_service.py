"""The reference service over gRPC: real servers on port 0, the tiny random model, the real client."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry
from transformers import AutoModelForCausalLM

from rlhf.client.reference import LogprobsItem, ReferenceClient
from rlhf.errors import ConfigError, InvalidRequestError
from rlhf.models.loading import load_tokenizer, tokenizer_digest
from rlhf.models.weights import checkpoint_manifest
from rlhf.serving.batching.limits import BatchLimitsConfig
from rlhf.serving.directory import REFERENCE
from rlhf.serving.server import ServiceServer
from rlhf.v1 import reference_pb2, reference_pb2_grpc
from services.reference.config import ModelConfig, ReferenceServerConfig
from services.reference.core import ReferenceCore, ReferenceMetrics
from services.reference.server import build_scorer
from services.reference.servicer import ReferenceServicer
from tests.support.tiny_model import VOCAB_SIZE


def make_server(path: Path, registry: CollectorRegistry, **limits: Any) -> ServiceServer:
    model = ModelConfig(path=str(path), dtype="float32", device="cpu")
    core = ReferenceCore(partial(build_scorer, model), BatchLimitsConfig(**limits), ReferenceMetrics(registry))
    register = partial(reference_pb2_grpc.add_ReferenceServiceServicer_to_server, ReferenceServicer(core))
    config = ReferenceServerConfig(host="127.0.0.1", port=0, metrics_port=0, drain_seconds=1)
    return ServiceServer(REFERENCE, config, register, core, registry=registry)


@asynccontextmanager
async def served(path: Path, **limits: Any) -> AsyncIterator[tuple[ReferenceClient, CollectorRegistry]]:
    registry = CollectorRegistry()
    server = make_server(path, registry, **limits)
    await server.start()
    try:
        await server.wait_ready()
        async with ReferenceClient(f"127.0.0.1:{server.port}") as client:
            yield client, registry
    finally:
        await server.stop()


def random_items(num_items: int, seed: int) -> list[LogprobsItem]:
    generator = torch.Generator().manual_seed(seed)

    def ids(longest: int) -> list[int]:
        length = int(torch.randint(1, longest, (), generator=generator))
        return torch.randint(0, VOCAB_SIZE, (length,), generator=generator).tolist()

    return [LogprobsItem(ids(60), ids(60), item_id=str(index)) for index in range(num_items)]


def oracle(path: Path, items: list[LogprobsItem], temperature: float) -> list[list[float]]:
    """One unpadded forward pass of transformers for each item."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    rows = []
    for item in items:
        ids = [*item.prompt_ids, *item.completion_ids]
        with torch.no_grad():
            logprobs = (model(torch.tensor([ids])).logits[0] / temperature).log_softmax(-1)
        rows.append([float(logprobs[t - 1, ids[t]]) for t in range(len(item.prompt_ids), len(ids))])
    return rows


async def test_callers_at_the_same_time_get_the_logprobs_that_transformers_computes(tiny_model_path: Path):
    items = random_items(48, seed=3)
    async with served(tiny_model_path, max_batch_tokens=512) as (client, registry):
        calls = [
            client.compute_logprobs(items[begin : begin + 6], temperature=0.5 if begin % 12 else 1.0)
            for begin in range(0, 48, 6)
        ]
        batches = await asyncio.gather(*calls)
    for index, batch in enumerate(batches):
        part = items[6 * index : 6 * index + 6]
        for row, expected in zip(batch.logprobs, oracle(tiny_model_path, part, 0.5 if index % 2 else 1.0), strict=True):
            assert row == pytest.approx(expected, abs=1e-4)
    assert registry.get_sample_value("rlhf_reference_items_total") == 48
    num_batches = registry.get_sample_value("rlhf_reference_padding_ratio_count")
    padding = registry.get_sample_value("rlhf_reference_padding_ratio_sum")
    assert num_batches is not None
    assert padding is not None
    assert padding / num_batches < 0.2


async def test_an_absent_temperature_is_one(tiny_model_path: Path):
    item = LogprobsItem([5, 6], [7, 8, 9])
    async with served(tiny_model_path) as (client, _):
        request = reference_pb2.ComputeLogprobsRequest(
            items=[reference_pb2.ComputeLogprobsItem(item_id="x", prompt_ids=[5, 6], completion_ids=[7, 8, 9])]
        )
        response = await client._stub.ComputeLogprobs(request, timeout=10)
    assert response.results[0].item_id == "x"
    assert list(response.results[0].logprobs) == pytest.approx(oracle(tiny_model_path, [item], 1.0)[0], abs=1e-4)


async def test_get_model_tells_version_tokenizer_and_limits(tiny_model_path: Path):
    async with served(tiny_model_path, max_items=7) as (client, _):
        info = await client.get_model()
        batch = await client.compute_logprobs([LogprobsItem([5], [6])], tokenizer_digest=info.tokenizer_digest)
    assert info.model_name == str(tiny_model_path)
    assert info.reference_version == batch.reference_version
    assert info.reference_version == checkpoint_manifest(tiny_model_path, "float32").digest
    assert info.tokenizer_digest == tokenizer_digest(load_tokenizer(tiny_model_path))
    assert (info.max_sequence_tokens, info.max_items) == (512, 7)


@pytest.mark.parametrize(
    ("items", "temperature", "digest", "message"),
    [
        ([], 1.0, "", "items is empty; send at least one"),
        ([LogprobsItem([1], [2])] * 3, 1.0, "", "items has 3 entries, the limit is 2; split the batch"),
        ([LogprobsItem([1], [2])], 0.0, "", "temperature is 0, it must be above 0"),
        ([LogprobsItem([1], [2])], 1.0, "other", "tokenizer_digest is 'other'"),
        ([LogprobsItem([1], [2]), LogprobsItem([1], [])], 1.0, "", r"items\[1\].completion_ids is empty"),
        ([LogprobsItem([1], [260])], 1.0, "", r"items\[0\].completion_ids\[0\] is 260, outside the vocabulary of 260"),
        ([LogprobsItem([1], [2] * 600)], 1.0, "", r"items\[0\] has 601 tokens .* at most 512"),
    ],
)
async def test_a_bad_request_is_refused_and_the_service_goes_on(
    tiny_model_path: Path, items: list[LogprobsItem], temperature: float, digest: str, message: str
):
    async with served(tiny_model_path, max_items=2) as (client, _):
        with pytest.raises(InvalidRequestError, match=message):
            await client.compute_logprobs(items, temperature=temperature, tokenizer_digest=digest)
        assert (await client.compute_logprobs([LogprobsItem([1], [2])])).logprobs


async def test_health_answers_while_the_model_is_busy(tiny_model_path: Path):
    items = [LogprobsItem([5] * 250, [6] * 250) for _ in range(64)]
    async with served(tiny_model_path, max_batch_tokens=32_000) as (client, _):
        calls = [asyncio.create_task(client.compute_logprobs(items)) for _ in range(4)]
        slowest = 0.0
        num_probes = 0
        while not all(call.done() for call in calls):
            begin = time.monotonic()
            assert await client.is_serving(deadline_seconds=5)
            slowest = max(slowest, time.monotonic() - begin)
            num_probes += 1
            await asyncio.sleep(0.01)
        await asyncio.gather(*calls)
    assert num_probes > 5
    assert slowest < 1.0


async def test_a_model_path_that_does_not_exist_fails_the_load(tmp_path: Path):
    server = make_server(tmp_path / "nowhere", CollectorRegistry())
    await server.start()
    try:
        with pytest.raises(ConfigError, match=r"model.path is '.*nowhere': no such directory"):
            await server.wait_ready()
    finally:
        await server.stop()


def test_the_command_refuses_a_wrong_path_with_exit_code_2(tmp_path: Path):
    command = [sys.executable, "-m", "services.reference.server", "--model.path", str(tmp_path / "nowhere")]
    ports = ["--server.port", "0", "--server.metrics_port", "0"]
    process = subprocess.run([*command, *ports], stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert process.returncode == 2
    assert f"rlhf-reference: model.path is '{tmp_path / 'nowhere'}': no such directory" in process.stderr
