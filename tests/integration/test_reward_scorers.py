"""A user's own scorer and a judge behind the real reward service: what callers get, and that it stays up."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from rlhf.client import Comparison, ComparisonItem, Reward, RewardClient, RewardError, ScoreItem
from services.reward.scorers.config import ScorerConfig, scorer_config
from tests.support.fake_judge import FakeJudge, serving, sigmoid
from tests.support.real_services import make_reward

OWN_SCORER = """
import os, time

class Own:
    def score(self, pairs):
        return [self.one(pair.completion) for pair in pairs]
    def one(self, word):
        if word == "raise":
            raise ValueError("no such word")
        if word == "hang":
            time.sleep(60)
        if word == "die":
            os._exit(1)
        return {"nan": float("nan"), "huge": 1e300}.get(word, float(len(word)))
"""


@asynccontextmanager
async def connected(scorer: ScorerConfig) -> AsyncIterator[RewardClient]:
    server = make_reward(scorer)
    await server.start()
    await server.wait_ready()
    try:
        async with RewardClient(f"127.0.0.1:{server.port}") as client:
            yield client
    finally:
        await server.stop()


def items(*completions: str) -> list[ScoreItem]:
    return [ScoreItem.text("prompt", completion) for completion in completions]


def summary(results: list[Reward | RewardError]) -> list[float | str]:
    return [result.reward if isinstance(result, Reward) else result.code for result in results]


async def test_what_a_users_scorer_does_to_itself_is_one_items_error(tmp_path: Path, tiny_model_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN_SCORER)
    python = {"target": "own:Own", "path": str(tmp_path), "timeout_seconds": 1}
    config = scorer_config(**{"kind": "python", "tokenizer": str(tiny_model_path), "python": python})
    async with connected(config) as client:
        model = await client.get_model()
        assert model.model_name == "own:Own"
        batch = await client.score(items("a", "raise", "bc", "hang", "nan", "def", "die", "huge", "ghij"))
        expected = [1, "scorer_failed", 2, "timeout", "not_finite", 3, "scorer_failed", "not_finite", 4]
        assert summary(batch.results) == expected
        assert batch.model_version == model.model_version
        assert await client.is_serving()
        # Token ids are decoded by the configured tokenizer: one token for each byte, after four special ones.
        ids = ScoreItem.tokens([10, 11], [10, 11, 12])
        assert summary((await client.score([ids], tokenizer_digest=model.tokenizer_digest)).results) == [3]
        comparison = (await client.compare([ComparisonItem(*items("abc", "ab"))])).results[0]
        assert isinstance(comparison, Comparison)
        assert comparison.probability == pytest.approx(sigmoid(3 - 2))


async def test_a_judge_scores_and_compares_behind_the_service() -> None:
    with serving(FakeJudge().app) as endpoint:
        judge = {"endpoint": endpoint, "model": "fake", "timeout_seconds": 10}
        async with connected(scorer_config(**{"kind": "judge", "judge": judge})) as client:
            first, failed = (await client.score(items("2", "refuse"))).results
            assert isinstance(first, Reward)
            assert first.reward == pytest.approx(sigmoid(2))
            assert isinstance(failed, RewardError)
            assert failed.code == "scorer_failed"
            better, unlike = (
                await client.compare(
                    [
                        ComparisonItem(*items("1", "1")),
                        ComparisonItem(ScoreItem.text("p", "1"), ScoreItem.text("q", "1")),
                    ]
                )
            ).results
            assert isinstance(better, Comparison)
            assert (better.probability, better.first_reward) == (pytest.approx(0.5), None)
            assert isinstance(unlike, RewardError)
            assert unlike.code == "invalid_item"


async def test_a_judge_that_went_away_is_an_error_to_be_asked_again() -> None:
    with serving(FakeJudge().app) as endpoint:
        judge = {"endpoint": endpoint, "model": "fake", "max_retries": 0}
        config = scorer_config(**{"kind": "judge", "judge": judge})
    async with connected(config) as client:
        results = (await client.score(items("1", "2"))).results
        assert summary(results) == ["unavailable"] * 2
        assert all(isinstance(result, RewardError) and result.is_retryable for result in results)
        assert await client.is_serving()
