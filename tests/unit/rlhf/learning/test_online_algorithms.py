"""The advantages and losses of each algorithm, by hand.

The four samples have rewards 1, -1 (one prompt) and 0.5, -0.5 (another), and 4, 2, 3 and 5 tokens. Where the reference
matters, every token is 0.5 nats likelier under the policy.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.learning.algorithm import Estimates, Scored
from rlhf.learning.batch import collate
from rlhf.learning.sample import Sample
from services.trainer.trainings import make_algorithm
from tests.unit.rlhf.learning.online_updaters import SAMPLES, Maker, on_policy, policy_logprobs, sample


@pytest.fixture(scope="session")
def make(tiny_model_path: Path, tiny_reward_path: Path) -> Maker:
    return Maker(tiny_model_path, tiny_reward_path)


def estimate(
    make: Maker, algorithm: str, samples: list[Sample] = SAMPLES, *, kl_coef: float = 0.0, **sections: dict[str, Any]
) -> Estimates:
    """Returns the estimates where the policy gives every token -1 nats, the reference -1.5, and values are 0."""
    batch = collate(samples)
    old_logprobs = torch.full_like(batch.ref_logprobs, -1.0).masked_fill(~batch.completion_mask, 0.0)
    zeros = torch.zeros_like(old_logprobs)
    scored = Scored(
        rewards=batch.rewards, old_logprobs=old_logprobs, entropies=zeros, old_values=zeros, kl_coef=kl_coef
    )
    return make_algorithm(make.config(algorithm, **sections)).estimate(batch, scored)


def by_row(estimates: Estimates) -> list[float]:
    """Returns the advantage of each completion, which must be the same for all its tokens."""
    rows = []
    for advantages, mask in zip(estimates.advantages, estimates.mask, strict=True):
        values = set(advantages[mask].tolist()) or {0.0}
        assert len(values) == 1
        rows.append(values.pop())
    return rows


def test_grpo_divides_by_the_spread_of_the_group_and_dr_grpo_does_not(make: Maker) -> None:
    # Standard deviations with n - 1: sqrt(2) and sqrt(0.5).
    root = 1 / math.sqrt(2)
    assert by_row(estimate(make, "grpo")) == pytest.approx([root, -root, root, -root], abs=1e-5)
    assert by_row(estimate(make, "grpo", grpo={"normalize_std": False})) == [1.0, -1.0, 0.5, -0.5]


def test_grpo_can_have_the_kl_in_the_reward(make: Maker) -> None:
    # Rewards less 0.1 * 0.5 a token: 0.8, -1.1 (mean -0.15) and 0.35, -0.75 (mean -0.2).
    found = estimate(make, "grpo", kl_coef=0.1, grpo={"normalize_std": False}, kl={"place": "reward"})
    assert by_row(found) == pytest.approx([0.95, -0.95, 0.55, -0.55])
    assert found.kl_coef == 0.0
    assert estimate(make, "grpo", kl_coef=0.1).kl_coef == 0.1


def test_rloo_compares_with_the_others(make: Maker) -> None:
    assert by_row(estimate(make, "rloo")) == [2.0, -2.0, 1.0, -1.0]
    assert by_row(estimate(make, "rloo", kl_coef=0.1)) == pytest.approx([1.9, -1.9, 1.1, -1.1])


def test_reinforce_whitens_returns_over_all_tokens(make: Maker) -> None:
    # Sum 4 - 2 + 1.5 - 2.5 = 1 and squares 4 + 2 + 0.75 + 1.25 = 8 over 14 tokens: mean 1/14, variance 111/196.
    expected = [13, -15, 6, -8]
    assert by_row(estimate(make, "reinforce++")) == pytest.approx([each / math.sqrt(111) for each in expected])


def test_the_baseline_of_reinforce_takes_off_what_a_prompt_pays_anyway(make: Maker) -> None:
    generous = [*SAMPLES[:2], *(replace(each, rewards={"reward": each.reward + 10}) for each in SAMPLES[2:])]
    found = estimate(make, "reinforce++", generous, reinforce={"baseline": "group"})
    torch.testing.assert_close(found.advantages, estimate(make, "reinforce++").advantages)


def test_ppo_sums_what_is_still_to_come(make: Maker) -> None:
    critic = {"gae_lambda": 1.0, "whiten_advantages": False}
    found = estimate(make, "ppo", kl_coef=0.1, critic=critic)
    # Second completion: -0.05 for each of its 2 tokens, and -1 at the last.
    torch.testing.assert_close(found.advantages[1, :2], torch.tensor([-1.1, -1.05]))
    assert found.returns is not None
    torch.testing.assert_close(found.returns, found.advantages)  # the values were 0
    assert found.kl_coef == 0.0
    in_loss = estimate(make, "ppo", kl_coef=0.1, critic=critic, kl={"place": "loss"})
    torch.testing.assert_close(in_loss.advantages[1, :2], torch.tensor([-1.0, -1.0]))
    assert in_loss.kl_coef == 0.1


def test_online_dpo_pairs_the_best_with_the_worst_and_counts_ties(make: Maker) -> None:
    samples = [
        sample([5], [10], 0.0, "a"),
        sample([5], [11], 2.0, "a"),
        sample([5], [12], -1.0, "a"),
        *(sample([6], [13 + index], 1.0, "b") for index in range(3)),
    ]
    found = estimate(make, "online-dpo", samples, training={"group_size": 3})
    assert by_row(found) == [0.0, 1.0, -1.0, 0.0, 0.0, 0.0]
    assert found.metrics == {"pairs": 1.0, "ties": 1.0, "untrained_fraction": pytest.approx(4 / 6)}


@pytest.mark.parametrize("algorithm", ["grpo", "rloo"])
def test_a_completion_that_is_alone_in_its_group_teaches_nothing(make: Maker, algorithm: str) -> None:
    found = estimate(make, algorithm, SAMPLES[:3])
    assert found.trained_rows() == [True, True, False]
    assert found.metrics is not None
    assert found.metrics["untrained_fraction"] == pytest.approx(1 / 3)


def test_completions_without_an_end_can_be_left_out_of_the_loss_but_not_of_the_baseline(make: Maker) -> None:
    cut = sample([5, 6], [20, 21], -1.0, "0", stopped=False)
    found = estimate(make, "rloo", [SAMPLES[0], cut, *SAMPLES[2:]], reward={"mask_truncated": True})
    assert found.trained_rows() == [True, False, True, True]
    assert by_row(found) == [2.0, 0.0, 1.0, -1.0]


def test_completions_that_the_sampler_saw_otherwise_are_weighed_or_left_out(make: Maker) -> None:
    # The sampler said -1 nats of each token, and so does the trainer; of the second completion it said -3.
    odd = replace(SAMPLES[1], rollout=replace(SAMPLES[1].rollout, logprobs=[-3.0, -3.0]))
    loss = {"importance_cap": 2.0, "sequence_ratio_bound": 3.0}
    found = estimate(make, "rloo", [SAMPLES[0], odd, *SAMPLES[2:]], loss=loss)
    assert found.trained_rows() == [True, False, True, True]  # its ratio is exp(2) = 7.4
    assert found.weights is not None
    assert found.weights[1, :2].tolist() == [2.0, 2.0]
    assert found.weights[0, :4].tolist() == [1.0] * 4
    assert found.metrics == {
        "untrained_fraction": 0.25,
        "ratio_rejected_fraction": 0.25,
        "importance_clamped_fraction": pytest.approx(2 / 14),
    }


@pytest.mark.parametrize(
    ("aggregation", "divisor"),
    [
        ("token-mean", 14),
        ("sequence-mean-token-sum", 4),
        ("token-sum-over-constant", 4 * 100),
    ],
)
def test_the_loss_is_divided_by_what_the_mode_says(make: Maker, aggregation: str, divisor: int) -> None:
    updater = make(
        "grpo",
        grpo={"normalize_std": False},
        kl={"coef": 0.0},
        loss={"aggregation": aggregation},
        sampling={"max_new_tokens": 100},
    )
    metrics = updater.update(on_policy(updater), 1).metrics
    # At ratio 1: -(4 * 1 - 2 * 1 + 3 * 0.5 - 5 * 0.5) = -1 before the division.
    assert metrics["policy_loss"] == pytest.approx(-1 / divisor, abs=1e-7)


def test_kl_entropy_and_importance_weights_enter_the_loss(make: Maker) -> None:
    updater = make(
        "grpo",
        grpo={"normalize_std": False},
        kl={"coef": 0.04, "estimator": "k3"},
        loss={"entropy_coef": 0.01, "importance_cap": 2.0},
    )
    metrics = updater.update(on_policy(updater, kl=0.5, mismatch=1.0), 1).metrics
    # Every weight is exp(1), cut to 2. k3 of 0.5 nats is exp(-0.5) - 1 + 0.5.
    expected = -2 / 14 + 0.04 * (math.exp(-0.5) - 0.5) - 0.01 * metrics["entropy"]
    assert metrics["policy_loss"] == pytest.approx(expected, abs=1e-5)
    assert metrics["importance_clamped_fraction"] == 1.0


def test_online_dpo_starts_at_log_2_and_prefers_the_better_sample(make: Maker) -> None:
    updater = make("online-dpo")
    batch = on_policy(updater)  # the policy is the reference
    first = updater.update(batch, 1).metrics
    assert first["policy_loss"] == pytest.approx(math.log(2))
    assert (first["pairs"], first["ties"], first["reward_margin"], first["reward_accuracy"]) == (2.0, 0.0, 0.0, 0.0)
    moved = (policy_logprobs(updater, batch) - batch.ref_logprobs).masked_fill(~batch.completion_mask, 0.0).sum(-1)
    assert moved[0] > moved[1]
    assert moved[2] > moved[3]
    second = updater.update(batch, 2).metrics
    assert second["policy_loss"] < math.log(2)
    # beta 0.1 of the log-ratios, the mean over two pairs.
    assert second["reward_margin"] == pytest.approx(
        0.1 * float(moved[0] - moved[1] + moved[2] - moved[3]) / 2, rel=1e-3
    )
    assert second["reward_accuracy"] == 1.0
    assert second["chosen_logprob_mean"] == pytest.approx(
        float(moved[0] + moved[2] + batch.ref_logprobs[[0, 2]].sum()) / 2, rel=1e-4
    )


def test_nothing_but_ties_changes_nothing(make: Maker) -> None:
    updater = make("online-dpo")
    ties = [replace(each, rewards={"reward": 1.0}) for each in SAMPLES]
    update = updater.update(on_policy(updater, ties), 1)
    assert not update.policy_changed
    assert (update.metrics["pairs"], update.metrics["ties"], update.metrics["policy_steps"]) == (0.0, 2.0, 0.0)
