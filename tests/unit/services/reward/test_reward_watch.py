"""The watch over rewards: what it keeps, what it says, and what it passes over."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from rlhf.client.reward_types import RewardReport
from services.reward.metrics import RewardMetrics
from services.reward.scorers.scorer import Observation, TextPair, TokenPair
from services.reward.watch.report import ThresholdsConfig, WatchConfig
from services.reward.watch.watch import QUIET_SECONDS, REPETITION_ITEMS, REPETITION_UNITS, CallerLabels, RewardWatch

CONFIG = WatchConfig(baseline_items=20, window_items=20)


def make_watch(config: WatchConfig = CONFIG) -> tuple[RewardWatch, CollectorRegistry]:
    registry = CollectorRegistry()
    return RewardWatch(config, RewardMetrics(registry).watch, None), registry


def seen(reward: float, completion: str | list[int] = "a b c d", spread: float | None = None) -> Observation:
    item = TextPair("p", completion) if isinstance(completion, str) else TokenPair([1], completion)
    return Observation(reward, spread, completion, item)


def only_report(watch: RewardWatch) -> RewardReport:
    (report,) = watch.reports()
    return report


def test_before_anything_was_scored_there_is_no_report() -> None:
    watch, registry = make_watch()
    watch.observe("v1", "trainer", [])
    assert watch.reports() == []
    assert registry.get_sample_value("rlhf_reward_watch_mean", {"model_version": "v1", "caller": "trainer"}) is None


def test_a_first_call_has_a_mean_and_no_comparison() -> None:
    watch, _ = make_watch()
    watch.observe("v1", "trainer", [seen(1.0, "aaa"), seen(3.0, "aaaaaa")])
    report = only_report(watch)
    assert (report.item_count, report.window_item_count, report.baseline_item_count) == (2, 2, 2)
    assert (report.reward_mean, report.reward_std) == (2.0, 1.0)
    assert report.reward_quantiles == pytest.approx((1.2, 2.0, 2.8))
    assert (report.baseline_mean, report.drift, report.heldout_gap, report.spread_mean) == (None,) * 4
    assert report.length_correlation == pytest.approx(1.0)
    assert report.repetition_mean is None  # one word each


def test_rewards_that_leave_the_first_ones_behind_have_drifted() -> None:
    watch, registry = make_watch()
    watch.observe("v1", "trainer", [seen(0.0)] * 20)
    assert only_report(watch).drift == 0.0
    watch.observe("v1", "trainer", [seen(1.0)] * 20)
    report = only_report(watch)
    assert (report.item_count, report.window_item_count, report.baseline_item_count) == (40, 20, 20)
    assert (report.baseline_mean, report.reward_mean) == (0.0, 1.0)
    # Three bins, below, at and above 0, a half added to each: 20.5/21.5 and 0.5/21.5 change places.
    drift = 2 * (20 / 21.5) * float(np.log(20.5 / 0.5))
    assert report.drift == pytest.approx(drift)
    labels = {"model_version": "v1", "caller": "trainer"}
    assert registry.get_sample_value("rlhf_reward_watch_drift", labels) == pytest.approx(drift)
    assert registry.get_sample_value("rlhf_reward_watch_mean", labels) == 1.0
    assert registry.get_sample_value("rlhf_reward_watch_spread_mean", labels) is None


def test_callers_and_versions_are_kept_apart_and_the_newest_version_comes_first() -> None:
    watch, _ = make_watch()
    watch.observe("v1", "trainer", [seen(1.0)])
    watch.observe("v1", "filter", [seen(5.0)])
    watch.observe("v2", "trainer", [seen(2.0)])
    found = [(report.model_version, report.caller, report.reward_mean) for report in watch.reports()]
    assert found == [("v2", "trainer", 2.0), ("v1", "trainer", 1.0), ("v1", "filter", 5.0)]


def test_of_five_versions_the_one_used_least_lately_is_forgotten() -> None:
    watch, _ = make_watch()
    for version in ("v1", "v2", "v3", "v4", "v1", "v5"):
        watch.observe(version, "trainer", [seen(1.0)])
    assert [report.model_version for report in watch.reports()] == ["v5", "v1", "v4", "v3"]


def test_callers_past_the_32nd_share_a_name() -> None:
    watch, _ = make_watch()
    for number in range(40):
        watch.observe("v1", f"caller-{number}", [seen(1.0)])
    counts = {report.caller: report.item_count for report in watch.reports()}
    assert len(counts) == 33
    assert counts["other"] == 8
    assert counts["caller-31"] == 1


def test_a_caller_keeps_its_label() -> None:
    labels = CallerLabels(max_callers=2)
    assert [labels.of(name) for name in ("a", "", "b", "a", "")] == ["a", "unknown", "other", "a", "unknown"]


def test_a_caller_that_has_been_idle_makes_room_for_a_new_one() -> None:
    now, forgotten = [0.0], list[str]()
    labels = CallerLabels(forgotten.append, max_callers=2, idle_seconds=10, now=lambda: now[0])
    assert (labels.of("a"), labels.of("b")) == ("a", "b")
    now[0] = 9.0
    assert (labels.of("a"), labels.of("c")) == ("a", "other")  # b was seen 9 seconds ago
    now[0] = 10.0
    assert (labels.of("c"), forgotten) == ("c", ["b"])
    assert (labels.of("b"), labels.of("a")) == ("other", "a")


def test_a_caller_that_has_been_quiet_is_still_reported_on_and_no_longer_alerted_about() -> None:
    now = [0.0]
    registry = CollectorRegistry()
    watch = RewardWatch(CONFIG, RewardMetrics(registry).watch, None, now=lambda: now[0])

    def mean(caller: str) -> float | None:
        return registry.get_sample_value("rlhf_reward_watch_mean", {"model_version": "v1", "caller": caller})

    watch.observe("v1", "run-1", [seen(1.0)])
    now[0] = QUIET_SECONDS - 1
    watch.observe("v1", "run-2", [seen(2.0)])
    assert (mean("run-1"), mean("run-2")) == (1.0, 2.0)
    now[0] = QUIET_SECONDS + 1
    assert (mean("run-1"), mean("run-2")) == (None, 2.0)
    assert [report.caller for report in watch.reports()] == ["run-1", "run-2"]
    watch.observe("v1", "run-1", [seen(3.0)])
    assert mean("run-1") == 2.0


def test_characters_and_tokens_are_not_ranked_together() -> None:
    watch, _ = make_watch()
    # Of tokens, longer earns less; with the texts' characters among them it would seem to earn more.
    watch.observe("v1", "trainer", [seen(9.0, "x" * 500), seen(8.0, "x" * 400)])
    watch.observe("v1", "trainer", [seen(1.0, [1, 2, 3]), seen(2.0, [1, 2]), seen(3.0, [1])])
    assert only_report(watch).length_correlation == pytest.approx(-1.0)


def test_a_constant_reward_has_no_correlation_with_length() -> None:
    watch, _ = make_watch()
    watch.observe("v1", "trainer", [seen(1.0, "a"), seen(1.0, "aa"), seen(1.0, "aaa")])
    assert only_report(watch).length_correlation is None


def test_repetition_is_looked_for_at_the_end_of_a_completion() -> None:
    watch, _ = make_watch()
    start = list(range(1000, 1000 + REPETITION_UNITS))
    loop = [7] * REPETITION_UNITS
    watch.observe("v1", "trainer", [seen(1.0, start + loop)])
    # The loop alone: 510 trigrams, the first of them new.
    assert only_report(watch).repetition_mean == pytest.approx(509 / 510)


def test_repetition_of_a_large_call_is_measured_on_some_of_its_items() -> None:
    class Counted(list[int]):
        num_reads = 0

        def __getitem__(self, place: Any) -> Any:
            Counted.num_reads += 1
            return super().__getitem__(place)

    watch, _ = make_watch()
    watch.observe("v1", "trainer", [seen(1.0, Counted([1, 2, 3])) for _ in range(100)])
    assert Counted.num_reads == REPETITION_ITEMS
    assert only_report(watch).repetition_mean == 0.0


def test_the_mean_spread_is_that_of_the_window() -> None:
    watch, _ = make_watch()
    watch.observe("v1", "trainer", [seen(1.0, spread=9.0)] * 3)
    watch.observe("v1", "trainer", [seen(1.0, spread=0.25), seen(1.0, spread=0.75)] * 10)
    assert only_report(watch).spread_mean == 0.5


def test_what_looks_wrong_is_said_with_its_number_and_its_threshold() -> None:
    thresholds = ThresholdsConfig(drift=0.5, length_correlation=0.8, repetition=0.3, spread=0.4)
    watch, _ = make_watch(WatchConfig(baseline_items=20, window_items=20, thresholds=thresholds))
    watch.observe("v1", "trainer", [seen(0.0, "one two three four", 0.1)] * 20)
    assert only_report(watch).warnings == ()
    watch.observe("v1", "trainer", [seen(float(n), "a " * (3 + n), 0.5) for n in range(1, 21)])
    drift, length, repetition, spread = only_report(watch).warnings
    assert drift.startswith("the rewards have moved from a mean of 0.00 to 10.50: drift ")
    assert "is above 0.5 (watch.thresholds.drift)" in drift
    assert length == (
        "longer completions earn more: the rank correlation of reward and length, 1.00, is beyond 0.8 "
        "(watch.thresholds.length_correlation)"
    )
    assert "more than 30% (watch.thresholds.repetition)" in repetition
    assert spread.startswith("the ensemble disagrees: a mean spread of 0.50 is above 0.4 (watch.thresholds.spread)")


def test_shorter_completions_that_earn_more_are_warned_of_too() -> None:
    watch, _ = make_watch()
    watch.observe("v1", "trainer", [seen(-float(n), "x" * n) for n in range(1, 10)])
    assert only_report(watch).warnings[0].startswith("shorter completions earn more")


def test_a_report_is_worked_out_anew_only_when_something_has_come() -> None:
    watch, _ = make_watch()
    watch.observe("v1", "trainer", [seen(1.0)])
    first = only_report(watch)
    assert only_report(watch) is first
    watch.observe("v1", "trainer", [seen(2.0)])
    assert only_report(watch).item_count == 2


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_report_is_what_numpy_finds_in_the_first_and_the_last_items(data: Any) -> None:
    rewards = data.draw(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=90))
    watch, _ = make_watch(WatchConfig(baseline_items=25, window_items=30))
    rest = list(rewards)
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        watch.observe("v1", "trainer", [seen(reward) for reward in rest[:size]])
        rest = rest[size:]
    report = only_report(watch)
    window = np.array(rewards[-30:])
    assert report.item_count == len(rewards)
    assert report.window_item_count == len(window)
    assert report.reward_mean == pytest.approx(window.mean(), abs=1e-9)
    assert report.reward_std == pytest.approx(window.std(), abs=1e-6)
    assert report.reward_quantiles == pytest.approx(np.quantile(window, (0.1, 0.5, 0.9)).tolist(), abs=1e-9)
    assert (report.drift is None) == (len(rewards) < 30)
    baseline = None if len(rewards) < 25 else pytest.approx(np.mean(rewards[:25]), abs=1e-9)
    assert report.baseline_mean == baseline
