"""How answers are counted."""

from prometheus_client import CollectorRegistry

from services.reward.metrics import RewardMetrics
from services.reward.scorers.scorer import ErrorCode, Score, ScoreError


def test_rewards_are_counted_under_the_version_that_gave_them() -> None:
    registry = CollectorRegistry()
    metrics = RewardMetrics(registry)
    metrics.count([1.0, Score(2.0, 0.25), ScoreError(ErrorCode.TIMEOUT, "late")], "v1")
    metrics.count([Score(3.0)], "v2")
    assert registry.get_sample_value("rlhf_reward_items_total") == 3
    assert registry.get_sample_value("rlhf_reward_errors_total", {"code": "timeout"}) == 1
    counts = [registry.get_sample_value("rlhf_reward_score_count", {"model_version": name}) for name in ("v1", "v2")]
    assert counts == [2, 1]
    spreads = [registry.get_sample_value("rlhf_reward_spread_count", {"model_version": name}) for name in ("v1", "v2")]
    assert spreads == [1, 0]


def test_the_series_of_the_fifth_last_version_end() -> None:
    registry = CollectorRegistry()
    metrics = RewardMetrics(registry)
    for version in ("v1", "v2", "v3", "v4", "v1", "v5"):
        metrics.count([1.0], version)
    counts = {
        version: registry.get_sample_value("rlhf_reward_score_count", {"model_version": version})
        for version in ("v1", "v2", "v3", "v4", "v5")
    }
    assert counts == {"v1": 2, "v2": None, "v3": 1, "v4": 1, "v5": 1}


def test_phases_and_results_are_there_before_they_happen() -> None:
    registry = CollectorRegistry()
    RewardMetrics(registry)
    for phase in ("queue", "tokenise", "model"):
        assert registry.get_sample_value("rlhf_reward_phase_seconds_count", {"phase": phase}) == 0
    for result in ("ok", "failed"):
        assert registry.get_sample_value("rlhf_reward_model_loads_total", {"result": result}) == 0
