"""One PPO update on tiny models."""

import math
from pathlib import Path

import pytest
import torch
from test_batch import make_sample

from rlhf_services.models.loading import load_policy
from rlhf_services.models.scalar_model import ScalarModel
from rlhf_services.models.token_scores import completion_logprobs, completion_values
from rlhf_services.trainer.config import OptimizerConfig
from rlhf_services.trainer.errors import NonFiniteError
from rlhf_services.trainer.learning.optimizer import MasterOptimizer
from rlhf_services.trainer.learning.update import PpoUpdater, make_kl_controller
from rlhf_services.trainer.online_config import PpoConfig
from rlhf_services.trainer.rollouts.batch import Batch, collate

SAMPLES = [
    make_sample([5, 6], [10, 11, 12, 13], 1.0),
    make_sample([7], [20, 21], -1.0),
    make_sample([8, 9, 10], [30, 31, 32], 0.5),
    make_sample([5, 9], [40, 41, 42, 43, 44], -0.5),
]


class Maker:
    """Makes updaters around fresh copies of the tiny models."""

    def __init__(self, policy_path: Path, critic_path: Path) -> None:
        self._paths = policy_path, critic_path

    def __call__(self, *, learning_rate: float = 1e-3, **settings: object) -> PpoUpdater:
        config = PpoConfig.model_validate({"prompts_per_step": len(SAMPLES), **settings})
        policy = load_policy(self._paths[0], dtype="float32")
        critic = ScalarModel.load(self._paths[1], "float32")
        optimizer = OptimizerConfig(learning_rate=learning_rate)
        return PpoUpdater(
            policy,
            critic,
            config,
            temperature=1.0,
            policy_optimizer=MasterOptimizer("policy", policy, optimizer, total_steps=100),
            critic_optimizer=MasterOptimizer("critic", critic, optimizer, total_steps=100),
            kl_controller=make_kl_controller(config),
        )


@pytest.fixture(scope="session")
def make_updater(tiny_model_path: Path, tiny_reward_path: Path) -> Maker:
    return Maker(tiny_model_path, tiny_reward_path)


def weights(updater: PpoUpdater) -> torch.Tensor:
    parameters = (*updater.policy.parameters(), *updater.critic.parameters())
    return torch.cat([parameter.detach().flatten() for parameter in parameters])


def moments(updater: PpoUpdater) -> torch.Tensor:
    """Adam's first moment after one step: a tenth of the clipped gradient, without the step's sign-like scaling."""
    tensors = (*updater.policy_optimizer.state_tensors().items(), *updater.critic_optimizer.state_tensors().items())
    return torch.cat([tensor.flatten() for name, tensor in tensors if name.endswith("exp_avg")])


def policy_logprobs(updater: PpoUpdater, batch: Batch) -> torch.Tensor:
    with torch.no_grad():
        return completion_logprobs(updater.policy, batch.sequences, 1.0)


@pytest.mark.parametrize("settings", [{}, {"single_pass_tokens": 0}, {"epochs": 2, "minibatches": 2}])
def test_losses_and_gradients_do_not_depend_on_the_micro_batches(
    make_updater: Maker, settings: dict[str, object]
) -> None:
    batch = collate(SAMPLES)
    whole = make_updater(micro_batch_tokens=10_000, **settings)
    split = make_updater(micro_batch_tokens=1, **settings)  # every sequence goes alone
    whole_metrics, split_metrics = whole.update(batch, 1), split.update(batch, 1)
    names = [name for name in whole_metrics if not name.endswith("seconds")]
    assert {name: split_metrics[name] for name in names} == pytest.approx(
        {name: whole_metrics[name] for name in names}, rel=1e-4, abs=1e-6
    )
    torch.testing.assert_close(moments(split), moments(whole), rtol=1e-4, atol=1e-7)


def test_a_single_pass_does_what_two_passes_do(make_updater: Maker) -> None:
    batch = collate(SAMPLES)
    single, double = make_updater(), make_updater(single_pass_tokens=0)
    single_metrics, double_metrics = single.update(batch, 1), double.update(batch, 1)
    assert single_metrics["policy_loss"] == pytest.approx(double_metrics["policy_loss"], abs=1e-7)
    torch.testing.assert_close(moments(single), moments(double), rtol=1e-4, atol=1e-7)


def test_what_was_rewarded_becomes_likelier(make_updater: Maker) -> None:
    batch = collate(SAMPLES[:2])  # rewards +1 and -1
    updater = make_updater(kl_coef=0.0)
    before = policy_logprobs(updater, batch).sum(-1)
    updater.update(batch, 1)
    change = policy_logprobs(updater, batch).sum(-1) - before
    assert change[0] > 0 > change[1]


def test_the_critic_approaches_the_returns(make_updater: Maker) -> None:
    batch = collate(SAMPLES)
    updater = make_updater(kl_coef=0.0, gae_lambda=1.0, value_clip_eps=100.0)
    for step in range(30):
        metrics = updater.update(batch, step)
    # With lambda 1, gamma 1 and no KL every return is the completion's reward.
    with torch.no_grad():
        values = completion_values(updater.critic, batch.sequences)
    errors = (values - batch.rewards[:, None])[batch.completion_mask]
    assert float(errors.abs().mean()) < 0.3
    assert metrics["value_explained_variance"] > 0.5


def test_the_metrics_of_a_batch_are_what_a_hand_says(make_updater: Maker) -> None:
    updater = make_updater(kl_coef=0.3)
    batch = collate(SAMPLES)
    logprobs = policy_logprobs(updater, batch)
    half = torch.tensor(0.5)
    batch = Batch(
        sequences=batch.sequences,
        completion_mask=batch.completion_mask,
        sampler_logprobs=logprobs - 0.1,
        ref_logprobs=logprobs - half,
        rewards=batch.rewards,
    )
    metrics = updater.update(batch, 1)
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
    assert metrics["clip_fraction"] == metrics["approx_kl"] == metrics["value_clip_fraction"] == 0.0
    # Whitened advantages have mean 0 over the tokens, and at ratio 1 the loss is minus that mean.
    assert metrics["policy_loss"] == pytest.approx(0.0, abs=1e-6)


def test_later_epochs_see_the_ratio_move(make_updater: Maker) -> None:
    metrics = make_updater(epochs=4, learning_rate=1e-2).update(collate(SAMPLES), 1)
    assert metrics["approx_kl"] > 0
    assert metrics["clip_fraction"] > 0


def test_the_kl_coefficient_follows_its_target(make_updater: Maker) -> None:
    updater = make_updater(kl_coef=0.2, kl_target=1.0, kl_horizon=40)
    batch = collate(SAMPLES)
    reference = policy_logprobs(updater, batch) - 1.0  # 14 nats in 4 completions: 3.5, over the target
    batch = Batch(
        sequences=batch.sequences,
        completion_mask=batch.completion_mask,
        sampler_logprobs=batch.sampler_logprobs,
        ref_logprobs=reference,
        rewards=batch.rewards,
    )
    updater.update(batch, 1)
    assert updater.kl_controller.coef == pytest.approx(0.2 * (1 + 0.2 * 4 / 40))


def test_every_row_is_in_one_minibatch_and_the_split_depends_on_the_step(make_updater: Maker) -> None:
    updater = make_updater(prompts_per_step=50, minibatches=4)
    parts = updater._split_rows(50, step=1, epoch=0)
    assert sorted(row for part in parts for row in part) == list(range(50))
    assert [len(part) for part in parts] == [13, 13, 12, 12]
    assert updater._split_rows(50, step=1, epoch=0) == parts
    assert updater._split_rows(50, step=2, epoch=0) != parts
    assert len(updater._split_rows(2, step=1, epoch=0)) == 2  # most of the rollouts were dropped


@pytest.mark.parametrize("settings", [{}, {"single_pass_tokens": 0}, {"whiten_advantages": False}])
def test_a_loss_that_is_not_finite_raises_and_changes_nothing(make_updater: Maker, settings: dict[str, object]) -> None:
    updater = make_updater(**settings)
    before = weights(updater)
    batch = collate([make_sample([5, 6], [10, 11], math.inf), *SAMPLES])
    with pytest.raises(NonFiniteError, match=r"the policy loss is (nan|-?inf); the weights were left as they were"):
        updater.update(batch, 1)
    assert torch.equal(weights(updater), before)


def test_weights_that_are_not_finite_are_named(make_updater: Maker) -> None:
    updater = make_updater()
    with torch.no_grad():
        updater.critic.head.weight.fill_(math.nan)
    with pytest.raises(NonFiniteError, match="the sum of the critic's values is nan"):
        updater.update(collate(SAMPLES), 1)
