"""The reward service over gRPC: real servers on port 0, tiny random models, the real client."""

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from prometheus_client import CollectorRegistry
from transformers import AutoModelForSequenceClassification

from rlhf.client import Reward, RewardClient, RewardError, ScoreItem
from rlhf.client.patience import Patience
from rlhf.errors import ConfigError, InvalidRequestError, NotReadyError, OverloadedError
from rlhf.models.loading import load_tokenizer, tokenizer_digest
from rlhf.serving.server import ServiceServer
from rlhf.v1 import reward_pb2
from services.reward.config import LimitsConfig
from services.reward.core import RewardCore
from services.reward.metrics import RewardMetrics
from services.reward.scorers.config import build_scorer, scorer_config
from services.reward.scorers.scorer import Scorer, ScorerInfo, TextPair, TokenPair
from tests.support.reward_over_grpc import reward_server
from tests.support.tiny_model import ASSISTANT_ID, EOS_ID, USER_ID, make_tiny_reward_model


class GatedScorer:
    """Answers the completion's length, but only once its gate is open."""

    info = ScorerInfo(name="gated", version="gated-1", tokenizer_digest="", max_sequence_tokens=0)

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.scored: list[str] = []

    def prepare(self, pair: TextPair | TokenPair) -> str:
        assert isinstance(pair, TextPair)
        return pair.completion

    def size_of(self, prepared: str) -> int:
        return 1

    def score(self, batch: list[str]) -> list[float]:
        self.entered.set()
        assert self.gate.wait(20)
        self.scored += batch
        return [float(len(completion)) for completion in batch]

    def close(self) -> None:
        pass


def make_server(build: Callable[[], Scorer[Any]], registry: CollectorRegistry, **limits: Any) -> ServiceServer:
    core = RewardCore(build, LimitsConfig(**limits), RewardMetrics(registry))
    return reward_server(core, registry)


@asynccontextmanager
async def served(build: Callable[[], Scorer[Any]], **limits: Any) -> AsyncIterator[tuple[RewardClient, ServiceServer]]:
    server = make_server(build, CollectorRegistry(), **limits)
    await server.start()
    try:
        await server.wait_ready()
        async with RewardClient(f"127.0.0.1:{server.port}", wait_when_overloaded=False) as client:
            yield client, server
    finally:
        await server.stop()


def model(path: Path) -> Callable[[], Scorer[Any]]:
    return partial(build_scorer, scorer_config(kind="model", path=str(path), dtype="float32", device="cpu"))


def rewards_of(results: list[Reward | RewardError]) -> list[float]:
    assert all(isinstance(result, Reward) for result in results), results
    return [result.reward for result in results if isinstance(result, Reward)]


async def test_tokens_and_text_of_one_pair_get_the_reward_that_transformers_computes(tiny_reward_path: Path):
    tokenizer = load_tokenizer(tiny_reward_path)
    prompt_ids = [USER_ID, *tokenizer.encode("How are you?"), EOS_ID, ASSISTANT_ID]
    completion_ids = [*tokenizer.encode("Fine, thanks."), EOS_ID]
    items = [
        ScoreItem.tokens(prompt_ids, completion_ids, item_id="tokens"),
        ScoreItem.text("How are you?", "Fine, thanks.", item_id="text"),
        ScoreItem.text("How are you?", "No.", item_id="other"),
    ]
    async with served(model(tiny_reward_path)) as (client, _):
        batch = await client.score(items, tokenizer_digest=tokenizer_digest(tokenizer))
        info = await client.get_model()
    classifier = AutoModelForSequenceClassification.from_pretrained(tiny_reward_path, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = float(classifier(torch.tensor([prompt_ids + completion_ids])).logits)
    tokens, text, other = rewards_of(batch.results)
    assert tokens == pytest.approx(expected, abs=1e-5)
    assert text == pytest.approx(expected, abs=1e-5)
    assert other != pytest.approx(expected, abs=1e-3)
    assert [result.item_id for result in batch.results] == ["tokens", "text", "other"]
    assert batch.model_version == info.model_version
    assert info.model_name == str(tiny_reward_path)
    assert (info.max_sequence_tokens, info.max_items) == (512, 1024)


async def test_bad_items_get_errors_and_their_neighbours_the_same_rewards_as_alone(tiny_reward_path: Path):
    good = [ScoreItem.tokens([2, 5], [6, 7], "a"), ScoreItem.tokens([2, 9, 9], [8], "b")]
    bad = [
        ScoreItem(reward_pb2.ScoreItem(item_id="none")),
        ScoreItem.tokens([], [1], "empty"),
        ScoreItem.tokens([1], [999], "unknown"),
        ScoreItem.tokens([1], [5] * 600, "long"),
        ScoreItem.text("", "x", "no prompt"),
        ScoreItem.text("x", "", "no completion"),
    ]
    async with served(model(tiny_reward_path)) as (client, _):
        alone = rewards_of((await client.score(good)).results)
        mixed = (await client.score([good[0], *bad, good[1]])).results
    assert rewards_of([mixed[0], mixed[-1]]) == pytest.approx(alone, abs=1e-5)
    faults = [result for result in mixed if isinstance(result, RewardError)]
    assert [(fault.item_id, fault.code) for fault in faults] == [
        ("none", "invalid_item"),
        ("empty", "invalid_item"),
        ("unknown", "invalid_item"),
        ("long", "too_long"),
        ("no prompt", "invalid_item"),
        ("no completion", "invalid_item"),
    ]
    assert "tokens.completion_ids[0] is 999, outside the vocabulary of 260" in faults[2].message


async def test_a_model_that_answers_nan_gives_an_error_for_that_item_alone(tiny_reward_path: Path):
    def build() -> Scorer[Any]:
        scorer = model(tiny_reward_path)()
        # A broken embedding makes every sequence that holds id 50 NaN, and no other.
        scorer._model.backbone.get_input_embeddings().weight.data[50] = torch.nan
        return scorer

    async with served(build) as (client, _):
        batch = await client.score([ScoreItem.tokens([2, 5], [6]), ScoreItem.tokens([2, 50], [6])])
    assert rewards_of(batch.results[:1])
    assert isinstance(batch.results[1], RewardError)
    assert batch.results[1].code == "not_finite"


async def test_an_ensembles_spread_reaches_the_caller_and_a_single_models_is_absent(
    tiny_reward_path: Path, tmp_path: Path
):
    paths = [str(tiny_reward_path), str(make_tiny_reward_model(tmp_path / "second", seed=1))]
    config = scorer_config(kind="ensemble", paths=paths, combine="worst", dtype="float32", device="cpu")
    item = ScoreItem.tokens([2, 5], [6, 7])
    singles: list[float] = []
    for path in paths:
        async with served(model(Path(path))) as (client, _):
            (result,) = (await client.score([item])).results
            assert isinstance(result, Reward)
            assert result.spread is None
            singles.append(result.reward)
    async with served(partial(build_scorer, config)) as (client, _):
        batch = await client.score([item, ScoreItem.tokens([], [1])])
    (result, fault) = batch.results
    assert isinstance(result, Reward)
    # Of two numbers the population standard deviation is half their distance.
    assert (result.reward, result.spread) == pytest.approx((min(singles), abs(singles[0] - singles[1]) / 2), abs=1e-5)
    assert isinstance(fault, RewardError)
    assert batch.model_version.startswith("worst:")


async def test_what_concerns_the_whole_call_is_refused_with_field_value_and_remedy(tiny_reward_path: Path):
    item = ScoreItem.tokens([2], [3])
    async with served(model(tiny_reward_path), max_items=2) as (client, _):
        with pytest.raises(InvalidRequestError, match="items is empty; send at least one"):
            await client.score([])
        with pytest.raises(InvalidRequestError, match="items has 3 entries, the limit is 2; split the batch"):
            await client.score([item] * 3)
        with pytest.raises(InvalidRequestError, match="tokenizer_digest is 'other'"):
            await client.score([item], tokenizer_digest="other")
        assert rewards_of((await client.score([item])).results)


async def test_health_answers_while_the_model_is_busy(tiny_reward_path: Path):
    items = [ScoreItem.tokens([5] * 250, [6] * 250) for _ in range(64)]
    async with served(model(tiny_reward_path), max_batch_tokens=32_000) as (client, _):
        calls = [asyncio.create_task(client.score(items)) for _ in range(4)]
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


async def test_a_full_queue_is_refused_at_once_and_what_was_accepted_is_answered():
    scorer = GatedScorer()
    async with served(lambda: scorer, max_items=2, max_queue_items=2) as (client, _):
        first = asyncio.create_task(client.score([ScoreItem.text("p", "a")]))
        await asyncio.to_thread(scorer.entered.wait, 10)
        second = asyncio.create_task(client.score([ScoreItem.text("p", "bb"), ScoreItem.text("p", "ccc")]))
        await asyncio.sleep(0.1)
        begin = time.monotonic()
        with pytest.raises(OverloadedError, match="no room for 1 more"):
            await client.score([ScoreItem.text("p", "dddd")])
        assert time.monotonic() - begin < 1.0
        scorer.gate.set()
        assert rewards_of((await first).results) == [1.0]
        assert rewards_of((await second).results) == [2.0, 3.0]


async def test_work_that_nobody_waits_for_any_more_is_not_done():
    scorer = GatedScorer()
    async with served(lambda: scorer) as (client, _):
        first = asyncio.create_task(client.score([ScoreItem.text("p", "first")]))
        await asyncio.to_thread(scorer.entered.wait, 10)
        with pytest.raises(NotReadyError, match="did not answer within the call's deadline"):
            await client.score([ScoreItem.text("p", "late")], deadline_seconds=0.2)
        leaving = asyncio.create_task(client.score([ScoreItem.text("p", "left")]))
        await asyncio.sleep(0.1)
        leaving.cancel()
        await asyncio.sleep(0.1)
        scorer.gate.set()
        await first
        await client.score([ScoreItem.text("p", "last")])
    assert scorer.scored == ["first", "last"]


async def test_a_model_path_that_does_not_exist_fails_the_load(tmp_path: Path):
    server = make_server(model(tmp_path / "nowhere"), CollectorRegistry())
    await server.start()
    try:
        with pytest.raises(ConfigError, match=r"scorer.path is '.*nowhere': no such directory"):
            await server.wait_ready()
    finally:
        await server.stop()


def run_command(*flags: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "services.reward.server", "--server.host", "127.0.0.1", "--http.port", "0", *flags]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def test_the_command_refuses_a_wrong_path_with_exit_code_2(tmp_path: Path):
    ports = ["--server.port", "0", "--server.metrics_port", "0"]
    process = run_command("--scorer.kind", "model", "--scorer.path", str(tmp_path / "nowhere"), *ports)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2
    assert f"rlhf-reward: scorer.path is '{tmp_path / 'nowhere'}': no such directory" in errors


async def test_the_command_serves_a_rule_and_its_metrics_until_sigterm():
    process = run_command("--scorer.kind", "length", "--server.port", "0", "--server.metrics_port", "0")
    try:
        assert process.stderr is not None
        lines = (json.loads(line) for line in process.stderr)
        listening = next(line for line in lines if line["event"] == "listening")
        async with RewardClient(f"127.0.0.1:{listening['port']}") as client:
            await Patience(wait_seconds=30).ask(client, client.get_model)
            batch = await client.score([ScoreItem.text("p", "x" * 150), ScoreItem.tokens([1], [2])])
        # The target is 200: 1 - |150 - 200| / 200.
        assert rewards_of(batch.results[:1]) == [0.75]
        assert isinstance(batch.results[1], RewardError)
        url = f"http://127.0.0.1:{listening['metrics_port']}/metrics"
        metrics = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=10).read().decode())
        assert "rlhf_reward_items_total 1.0" in metrics
        assert 'rlhf_reward_errors_total{code="invalid_item"} 1.0' in metrics
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 20) == 0
    finally:
        process.kill()
        process.communicate()
