"""How far behind the policy that sampled is: counted per token, bounded, and shown."""

from prometheus_client import CollectorRegistry

from rlhf.learning.sample import Sample
from rlhf.rollout import Rollout
from services.trainer.fleet.metrics import LagHistogram
from services.trainer.rollouts.collect import Collected
from services.trainer.rollouts.lookahead import count_lags, drop_too_old


def make_sample(rollout_id: str, *versions: int) -> Sample:
    rollout = Rollout(
        rollout_id=rollout_id,
        group_id=rollout_id,
        prompt_ids=[3],
        completion_ids=[5] * len(versions),
        logprobs=[-1.0] * len(versions),
        policy_versions=list(versions),
        finish_reason="stop",
    )
    return Sample(rollout=rollout, rewards={"reward": 1.0}, ref_logprobs=[-1.0] * len(versions))


def test_a_rollout_with_one_token_beyond_the_bound_is_dropped_and_counted() -> None:
    fresh, edge, mixed = make_sample("0", 7, 7), make_sample("1", 5, 6, 7), make_sample("2", 4, 7)
    collected = Collected(samples=[fresh, edge, mixed])
    collected.dropped["score_too_long"] = 1
    drop_too_old(collected, 7, 2)
    assert collected.samples == [fresh, edge]
    assert collected.dropped == {"score_too_long": 1, "policy_too_old": 1}


def test_a_step_within_the_bound_stays_as_it_is() -> None:
    collected = Collected(samples=[make_sample("0", 7)])
    drop_too_old(collected, 7, 0)
    assert len(collected.samples) == 1
    assert not collected.dropped


def test_lag_is_counted_for_each_token() -> None:
    samples = [make_sample("0", 7, 7), make_sample("1", 5, 6, 7)]
    assert count_lags(samples, 7) == {0: 3, 1: 1, 2: 1}


def test_a_histogram_adds_up_the_tokens_of_all_steps() -> None:
    registry = CollectorRegistry()
    histogram = LagHistogram(registry)
    histogram.add({0: 3, 1: 1})
    histogram.add({1: 2, 20: 1})  # more than can be configured

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"rlhf_trainer_policy_lag_{name}", labels)

    assert [value("bucket", le=le) for le in ("0.0", "1.0", "15.0", "16.0", "+Inf")] == [3, 6, 6, 7, 7]
    assert (value("count"), value("sum")) == (7, 3 * 1 + 16)
