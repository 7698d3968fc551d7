"""Serving other weights while many callers ask: nobody is refused, and every answer is of the version that it names."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry

from rlhf.statistics import sigmoid
from rlhf.v1 import reward_pb2
from services.reward.config import ModelsConfig, RewardConfig
from services.reward.metrics import RewardMetrics
from services.reward.scorers.config import ScorerConfig, build_scorer, scorer_config
from services.reward.scorers.scorer import ScoreError, TokenPair
from services.reward.server import make_core
from tests.support.reward_over_grpc import connected, serving, token_item
from tests.support.tiny_model import make_tiny_reward_model

NUM_CALLERS = 24
NUM_SWAPS = 6
PAIRS = [TokenPair([2, 4 + n], list(range(5, 7 + 3 * n))) for n in range(12)]
ITEMS = [token_item(pair.prompt_ids, pair.completion_ids) for pair in PAIRS]

Expected = dict[str, list[float]]


def config_of(path: Path) -> ScorerConfig:
    return scorer_config(kind="model", path=str(path), dtype="float32", device="cpu")


def expect(paths: list[Path]) -> Expected:
    """What each version gives the items, each scored alone."""
    expected: Expected = {}
    for path in paths:
        scorer = build_scorer(config_of(path))
        prepared = [scorer.prepare(pair) for pair in PAIRS]
        assert not any(isinstance(each, ScoreError) for each in prepared)
        expected[scorer.info.version] = [float(scorer.score([each])[0]) for each in prepared]
    return expected


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("models")
    return [make_tiny_reward_model(root / str(seed), seed) for seed in range(2)]


@asynccontextmanager
async def swappable(paths: list[Path]) -> AsyncIterator[tuple[str, CollectorRegistry]]:
    registry = CollectorRegistry()
    config = RewardConfig(scorer=config_of(paths[0]), models=ModelsConfig(allowed_roots=[str(paths[0].parent)]))
    async with serving(make_core(config, RewardMetrics(registry)), registry) as target:
        yield target, registry


async def ask(stub: Any, first: int, done: asyncio.Event, seen: list[reward_pb2.ScoreResponse]) -> None:
    """Scores all items, over and over, and checks each answer against its version."""
    while not done.is_set():
        items = ITEMS[first:] + ITEMS[:first]
        seen.append(await stub.Score(reward_pb2.ScoreRequest(items=items), timeout=60))
        await asyncio.sleep(0)


async def test_hot_swap_under_load(paths: list[Path]):
    expected = await asyncio.to_thread(expect, paths)
    assert len(expected) == 2
    versions = list(expected)
    # A mix-up of versions cannot pass: no item has like rewards from both.
    assert all(abs(a - b) > 1e-2 for a, b in zip(*expected.values(), strict=True))
    seen: list[list[reward_pb2.ScoreResponse]] = [[] for _ in range(NUM_CALLERS)]
    async with swappable(paths) as (target, registry), AsyncExitStack() as stack:
        stubs = [await stack.enter_async_context(connected(target)) for _ in range(NUM_CALLERS)]
        done = asyncio.Event()
        callers = [
            asyncio.create_task(ask(stub, index % len(ITEMS), done, seen[index])) for index, stub in enumerate(stubs)
        ]
        for swap in range(1, NUM_SWAPS + 1):
            request = reward_pb2.LoadModelRequest(model_paths=[str(paths[swap % 2])])
            loaded = await stubs[0].LoadModel(request, timeout=60)
            assert (loaded.model_version, loaded.previous_model_version) == (versions[swap % 2], versions[1 - swap % 2])
        done.set()
        await asyncio.gather(*callers)  # raises what any of them was refused with
        assert registry.get_sample_value("rlhf_reward_model_loads_total", {"result": "ok"}) == NUM_SWAPS
        assert registry.get_sample_value("rlhf_reward_queue_items") == 0
    answered: set[str] = set()
    for index, answers in enumerate(seen):
        assert answers
        first = index % len(ITEMS)
        for answer in answers:
            rewards = expected[answer.model_version]
            assert [result.WhichOneof("outcome") for result in answer.results] == ["reward"] * len(ITEMS)
            given = [result.reward for result in answer.results]
            assert given == pytest.approx(rewards[first:] + rewards[:first], abs=1e-4)
            answered.add(answer.model_version)
    assert answered == set(expected)


async def test_comparisons_and_the_model_that_is_named_follow_the_swap(paths: list[Path]):
    expected = await asyncio.to_thread(expect, paths)
    request = reward_pb2.CompareRequest(
        items=[reward_pb2.ComparisonItem(item_id="x", first=ITEMS[1], second=ITEMS[5], margin=0.25)]
    )
    async with swappable(paths) as (target, _), connected(target) as stub:
        for path, (version, rewards) in zip(paths, expected.items(), strict=True):
            await stub.LoadModel(reward_pb2.LoadModelRequest(model_paths=[str(path)]), timeout=60)
            model = await stub.GetModel(reward_pb2.RewardServiceGetModelRequest())
            answer = await stub.Compare(request, timeout=60)
            assert (model.model_version, answer.model_version, model.model_name) == (
                version,
                version,
                str(path.resolve()),
            )
            (result,) = answer.results
            assert result.item_id == "x"
            first, second = result.comparison.first_reward, result.comparison.second_reward
            assert (first, second) == pytest.approx((rewards[1], rewards[5]), abs=1e-4)
            probability = sigmoid((first - second) * model.logit_scale - 0.25)
            assert result.comparison.probability == pytest.approx(probability, abs=1e-6)
        report = await stub.GetReport(reward_pb2.GetReportRequest())
        assert not report.reports  # comparisons are not watched


async def test_a_refused_load_has_the_right_status_and_changes_nothing(paths: list[Path], tmp_path: Path):
    outside = make_tiny_reward_model(tmp_path / "outside", seed=5)
    async with swappable(paths) as (target, registry), connected(target) as stub:
        before = await stub.Score(reward_pb2.ScoreRequest(items=ITEMS))
        for path, code in ((outside, "INVALID_ARGUMENT"), (paths[0].parent / "missing", "INVALID_ARGUMENT")):
            with pytest.raises(grpc.aio.AioRpcError) as refusal:
                await stub.LoadModel(reward_pb2.LoadModelRequest(model_paths=[str(path)]))
            assert refusal.value.code().name == code
            assert "model_paths has" in (refusal.value.details() or "")
        after = await stub.Score(reward_pb2.ScoreRequest(items=ITEMS))
        assert after == before
        assert registry.get_sample_value("rlhf_reward_model_loads_total", {"result": "failed"}) == 2
