"""What one update does, whatever the algorithm."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.errors import NonFiniteError
from rlhf.learning.batch import collate
from rlhf.models.scalar_model import completion_values
from tests.unit.rlhf.learning.online_updaters import (
    ALGORITHM_NAMES,
    SAMPLES,
    Maker,
    moments,
    on_policy,
    policy_logprobs,
    sample,
    weights,
)


@pytest.fixture(scope="session")
def make(tiny_model_path: Path, tiny_reward_path: Path) -> Maker:
    return Maker(tiny_model_path, tiny_reward_path)


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in ALGORITHM_NAMES),
    ("ppo", {"critic": {"kind": "head"}}),
    ("ppo", {"kl": {"place": "loss"}, "loss": {"aggregation": "sequence-mean-token-mean", "entropy_coef": 0.1}}),
    ("grpo", {"loss": {"aggregation": "token-sum-over-constant", "importance_cap": 2.0, "dual_clip": 3.0}}),
    ("rloo", {"loss": {"aggregation": "sequence-mean-token-sum"}, "reward": {"normalize": "running", "clip": 1.0}}),
    ("reinforce++", {"reinforce": {"baseline": "group"}}),
    ("online-dpo", {"dpo": {"variant": "ipo"}}),
]


@pytest.mark.parametrize("training", [{}, {"single_pass_tokens": 0}, {"epochs": 2, "minibatches": 2}])
@pytest.mark.parametrize(("algorithm", "sections"), VARIANTS)
def test_losses_and_gradients_do_not_depend_on_the_micro_batches(
    make: Maker, algorithm: str, sections: dict[str, Any], training: dict[str, int]
) -> None:
    batch = collate(SAMPLES)
    whole = make(algorithm, training={"micro_batch_tokens": 10_000, **training}, **sections)
    split = make(algorithm, training={"micro_batch_tokens": 1, **training}, **sections)  # every unit goes alone
    whole_metrics, split_metrics = whole.update(batch, 1).metrics, split.update(batch, 1).metrics
    names = [name for name in whole_metrics if not name.endswith("seconds")]
    assert {name: split_metrics[name] for name in names} == pytest.approx(
        {name: whole_metrics[name] for name in names}, rel=1e-3, abs=1e-5
    )
    torch.testing.assert_close(moments(split), moments(whole), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("algorithm", ALGORITHM_NAMES)
def test_a_single_pass_does_what_two_passes_do(make: Maker, algorithm: str) -> None:
    batch = collate(SAMPLES)
    single, double = make(algorithm), make(algorithm, training={"single_pass_tokens": 0})
    single_metrics, double_metrics = single.update(batch, 1).metrics, double.update(batch, 1).metrics
    assert single_metrics["policy_loss"] == pytest.approx(double_metrics["policy_loss"], abs=1e-6)
    torch.testing.assert_close(moments(single), moments(double), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("algorithm", ALGORITHM_NAMES)
def test_what_was_rewarded_becomes_likelier(make: Maker, algorithm: str) -> None:
    updater = make(algorithm) if algorithm == "online-dpo" else make(algorithm, kl={"coef": 0.0})
    batch = on_policy(updater, SAMPLES[:2])  # rewards +1 and -1
    before = policy_logprobs(updater, batch).sum(-1)
    assert updater.update(batch, 1).policy_changed
    change = policy_logprobs(updater, batch).sum(-1) - before
    assert change[0] > change[1]


def test_the_critic_approaches_the_returns(make: Maker) -> None:
    batch = collate(SAMPLES)
    updater = make(kl={"coef": 0.0}, critic={"gae_lambda": 1.0, "value_clip_eps": 100.0})
    for step in range(1, 31):
        metrics = updater.update(batch, step).metrics
    # With lambda 1, gamma 1 and no KL every return is the completion's reward.
    assert updater.critic is not None
    with torch.no_grad():
        values = completion_values(updater.critic.trained.module, batch.sequences)
    errors = (values - batch.rewards[:, None])[batch.completion_mask]
    assert float(errors.abs().mean()) < 0.3
    assert metrics["value_explained_variance"] > 0.5


def test_the_metrics_of_a_batch_are_what_a_hand_says(make: Maker) -> None:
    updater = make(kl={"coef": 0.3})
    metrics = updater.update(on_policy(updater, kl=0.5, mismatch=0.1), 1).metrics
    # 4 + 2 + 3 + 5 = 14 tokens in 4 completions, each token 0.5 nats from the reference.
    assert metrics["kl_per_token"] == pytest.approx(0.5, abs=1e-5)
    assert metrics["kl"] == pytest.approx(0.5 * 14 / 4, abs=1e-4)
    assert metrics["sampler_mismatch"] == pytest.approx(0.1, abs=1e-5)
    # k3 of sampler to trainer with r = -0.1: exp(0.1) - 1 - 0.1
    assert metrics["sampler_mismatch_k3"] == pytest.approx(math.exp(0.1) - 1.1, abs=1e-5)
    assert metrics["reward_mean"] == 0.0
    assert metrics["reward_std"] == pytest.approx(math.sqrt((1 + 1 + 0.25 + 0.25) / 4))
    assert metrics["kl_coef"] == 0.3
    # The first optimizer step starts at the old weights: nothing is clipped, nothing has moved.
    assert metrics["clip_fraction"] == metrics["value_clip_fraction"] == 0.0
    assert metrics["approx_kl"] == pytest.approx(0.0, abs=1e-9)
    # Whitened advantages have mean 0 over the tokens, and at ratio 1 the loss is minus that mean.
    assert metrics["policy_loss"] == pytest.approx(0.0, abs=1e-6)


def test_later_epochs_see_the_ratio_move(make: Maker) -> None:
    metrics = make(training={"epochs": 4}, learning_rate=1e-2).update(collate(SAMPLES), 1).metrics
    assert metrics["approx_kl"] > 0
    assert metrics["clip_fraction"] > 0


def test_the_kl_coefficient_follows_its_target(make: Maker) -> None:
    updater = make(kl={"coef": 0.2, "target": 1.0, "horizon": 40})
    updater.update(on_policy(updater, kl=1.0), 1)  # 14 nats in 4 completions: 3.5, over the target
    assert updater.kl_controller.coef == pytest.approx(0.2 * (1 + 0.2 * 4 / 40))


def test_every_unit_is_in_one_minibatch_and_the_split_depends_on_the_step(make: Maker) -> None:
    updater = make(training={"prompts_per_step": 50, "minibatches": 4})
    units = [[row] for row in range(50)]
    parts = updater.split(units, step=1, epoch=0)
    assert sorted(unit for part in parts for unit in part) == units
    assert [len(part) for part in parts] == [13, 13, 12, 12]
    assert updater.split(units, step=1, epoch=0) == parts
    assert updater.split(units, step=2, epoch=0) != parts
    assert len(updater.split(units[:2], step=1, epoch=0)) == 2  # most of the rollouts were dropped


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"training": {"single_pass_tokens": 0}},
        {"critic": {"whiten_advantages": False}},
        {"critic": {"kind": "head"}},
    ],
)
def test_a_loss_that_is_not_finite_raises_and_changes_nothing(make: Maker, sections: dict[str, Any]) -> None:
    updater = make(**sections)
    before = weights(updater)
    batch = collate([sample([5, 6], [10, 11], math.inf), *SAMPLES])
    with pytest.raises(NonFiniteError, match=r"the policy loss is (nan|-?inf); the weights were left as they were"):
        updater.update(batch, 1)
    assert torch.equal(weights(updater), before)


def test_weights_that_are_not_finite_are_named(make: Maker) -> None:
    updater = make()
    assert updater.critic is not None
    with torch.no_grad():
        updater.critic.trained.module.head.weight.fill_(math.nan)
    with pytest.raises(NonFiniteError, match="the sum of the critic's values is nan"):
        updater.update(collate(SAMPLES), 1)
