"""The newest evaluation on Prometheus: what is not known has no sample."""

from prometheus_client import CollectorRegistry, generate_latest

from services.trainer.telemetry.gauges import EVALUATION_METRICS, LateGauges


def test_what_an_evaluation_does_not_know_has_no_sample() -> None:
    registry = CollectorRegistry()
    gauges = LateGauges("rlhf_trainer_evaluation_", EVALUATION_METRICS, registry)
    assert b"rlhf_trainer_evaluation" not in generate_latest(registry)
    gauges.set({"step": 10, "reward_mean": 0.5, "gold_reward_mean": 0.25, "seconds": 3.0})
    names = ("step", "reward_mean", "gold_reward_mean", "kl", "seconds")
    values = [registry.get_sample_value(f"rlhf_trainer_evaluation_{name}") for name in names]
    assert values == [10, 0.5, 0.25, None, None]
    gauges.set({"step": 20, "reward_mean": 0.75})
    # The gold service was away: its old mean says nothing about the present policy.
    assert registry.get_sample_value("rlhf_trainer_evaluation_gold_reward_mean") is None
    assert registry.get_sample_value("rlhf_trainer_evaluation_reward_mean") == 0.75


def test_every_metric_has_a_meaning_and_the_name_that_dashboards_use() -> None:
    assert set(EVALUATION_METRICS) == {"step", "reward_mean", "gold_reward_mean", "kl", "completion_tokens_mean"}
