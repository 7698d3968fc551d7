"""The held-out scorer: what its rewards say, and that nobody waits for it."""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from rlhf.client.reward_types import RewardReport
from rlhf.errors import ConfigError
from services.reward.metrics import RewardMetrics
from services.reward.scorers.scorer import (
    ErrorCode,
    Item,
    Observation,
    Outcome,
    ScoreError,
    ScorerInfo,
    TextPair,
    TokenPair,
    completion_of,
)
from services.reward.watch.report import WatchConfig
from services.reward.watch.watch import RewardWatch

CONFIG = WatchConfig(heldout_fraction=1.0, heldout_items=20)


class PairedScorer:
    """Its reward is the number after the comma in the completion; "bad" raises, "long" is an error, "gate" waits."""

    def __init__(self, digest: str = "") -> None:
        self.info = ScorerInfo(name="paired", version="p1", tokenizer_digest=digest, max_sequence_tokens=0)
        self.gate = threading.Event()
        self.closed = threading.Event()

    def prepare(self, item: Item) -> str | ScoreError:
        completion = completion_of(item)
        text = completion if isinstance(completion, str) else f"0,{completion[0]}"
        return ScoreError(ErrorCode.TOO_LONG, "too long") if text == "long" else text

    def size_of(self, prepared: str) -> int:
        return 1

    def score(self, batch: list[str]) -> list[Outcome]:
        if "gate" in batch:
            assert self.gate.wait(10)
        return [0.0 if text == "gate" else float(text.split(",")[1]) for text in batch]

    def close(self) -> None:
        self.closed.set()


def make_watch(scorer: Any, config: WatchConfig = CONFIG) -> tuple[RewardWatch, CollectorRegistry]:
    registry = CollectorRegistry()
    return RewardWatch(config, RewardMetrics(registry).watch, lambda: scorer), registry


def seen(reward: float, heldout: float | str) -> Observation:
    completion = f"{reward},{heldout}" if isinstance(heldout, float) else heldout
    return Observation(reward, None, completion, TextPair("p", completion))


def counted(registry: CollectorRegistry, result: str) -> float:
    return registry.get_sample_value("rlhf_reward_watch_heldout_items_total", {"result": result}) or 0.0


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < end, "it did not happen within 10 s"
        time.sleep(0.005)


def only_report(watch: RewardWatch) -> RewardReport:
    (report,) = watch.reports()
    return report


def test_a_reward_that_rises_without_the_held_out_one_leaves_a_gap() -> None:
    watch, registry = make_watch(PairedScorer())
    # Baseline: rewards 0 and 2 (mean 1, deviation 1), held-out 10 and 14 (mean 12, deviation 2).
    watch.observe("v1", "trainer", [seen(0.0, 10.0), seen(2.0, 14.0)] * 10)
    wait_until(lambda: counted(registry, "scored") == 20)
    assert only_report(watch).heldout_gap == 0.0
    assert only_report(watch).heldout_correlation == pytest.approx(1.0)
    # Then 3 and 5 (mean 4: 3 deviations up), held-out 14 and 12 (mean 13: half a deviation up), the ranks turned round.
    watch.observe("v1", "trainer", [seen(3.0, 14.0), seen(5.0, 12.0)] * 10)
    wait_until(lambda: counted(registry, "scored") == 40)
    report = only_report(watch)
    assert report.heldout_gap == pytest.approx(3.0 - 0.5)
    assert report.heldout_correlation == pytest.approx(-1.0)
    assert report.warnings[0].startswith("the reward has risen 2.50 standard deviations more than the held-out one")
    labels = {"model_version": "v1", "caller": "trainer"}
    assert registry.get_sample_value("rlhf_reward_watch_heldout_gap", labels) == pytest.approx(2.5)
    watch.close()


def test_too_few_pairs_and_a_constant_baseline_have_no_gap() -> None:
    watch, registry = make_watch(PairedScorer())
    watch.observe("v1", "trainer", [seen(1.0, 10.0)] * 19)
    wait_until(lambda: counted(registry, "scored") == 19)
    assert only_report(watch).heldout_gap is None
    watch.observe("v1", "trainer", [seen(1.0, 10.0)])
    wait_until(lambda: counted(registry, "scored") == 20)
    assert (only_report(watch).heldout_gap, only_report(watch).heldout_correlation) == (None, None)
    watch.close()


def test_items_that_come_while_it_is_behind_are_dropped_and_counted() -> None:
    scorer = PairedScorer()
    watch, registry = make_watch(scorer)
    watch.observe("v1", "trainer", [seen(1.0, "gate")] * 600)
    # It holds 16 at most, 256 wait; the others were dropped at once.
    assert counted(registry, "dropped") >= 600 - 256 - 16
    assert only_report(watch).item_count == 600
    scorer.gate.set()
    wait_until(lambda: counted(registry, "scored") + counted(registry, "dropped") == 600)
    watch.close()
    assert scorer.closed.is_set()


def test_a_scorer_that_fails_has_its_items_counted_and_goes_on() -> None:
    watch, registry = make_watch(PairedScorer())
    watch.observe("v1", "trainer", [seen(1.0, "bad")])
    wait_until(lambda: counted(registry, "failed") == 1)
    watch.observe("v1", "trainer", [seen(1.0, "long")])
    wait_until(lambda: counted(registry, "failed") == 2)
    watch.observe("v1", "trainer", [seen(1.0, float("nan"))])
    wait_until(lambda: counted(registry, "failed") == 3)
    watch.observe("v1", "trainer", [seen(1.0, 2.0)])
    wait_until(lambda: counted(registry, "scored") == 1)
    watch.close()


def test_token_ids_of_another_tokenizer_are_not_scored() -> None:
    watch, registry = make_watch(PairedScorer(digest="t1"))
    item = TokenPair([1], [5])
    watch.observe("v1", "trainer", [Observation(1.0, None, [5], item)], tokenizer_digest="t2")
    wait_until(lambda: counted(registry, "failed") == 1)
    watch.observe("v1", "trainer", [Observation(1.0, None, [5], item)], tokenizer_digest="t1")
    wait_until(lambda: counted(registry, "scored") == 1)
    watch.close()


def test_a_held_out_scorer_that_cannot_be_built_takes_nothing_with_it() -> None:
    def build() -> Any:
        raise ConfigError("watch.heldout.path is 'x': no such directory")

    registry = CollectorRegistry()
    watch = RewardWatch(CONFIG, RewardMetrics(registry).watch, build)
    with capture_logs() as logs:
        watch.observe("v1", "trainer", [seen(1.0, 2.0)])
        wait_until(lambda: counted(registry, "failed") == 1)
    assert [(log["log_level"], "cannot be built" in log["event"]) for log in logs] == [("error", True)]
    watch.observe("v1", "trainer", [seen(1.0, 2.0)])
    assert counted(registry, "failed") == 2
    assert only_report(watch).item_count == 2
    watch.close()


def test_only_a_share_of_the_items_is_sampled() -> None:
    watch, registry = make_watch(PairedScorer(), WatchConfig(heldout_fraction=0.1))
    for _ in range(20):
        watch.observe("v1", "trainer", [seen(1.0, 2.0)] * 100)
    wait_until(lambda: counted(registry, "scored") + counted(registry, "dropped") > 100)
    watch.close()
    # 200 are expected of 2000, with a standard deviation of 13.
    assert counted(registry, "scored") + counted(registry, "dropped") < 300


def test_closing_before_anything_came_is_harmless() -> None:
    watch, _ = make_watch(PairedScorer())
    watch.close()
