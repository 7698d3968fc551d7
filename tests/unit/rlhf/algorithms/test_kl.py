"""KL estimators, the penalty in the reward, and the controllers of its weight."""

import math

import pytest
import torch

from rlhf.algorithms.kl import AdaptiveKlController, FixedKlController, kl_estimate, token_rewards

LOG2 = math.log(2.0)


def test_estimators_by_hand():
    # r = log 2 and -log 2: k1 = r; k2 = r^2 / 2; k3 = exp(-r) - 1 + r = -1/2 + log 2 and 1 - log 2.
    logprobs, ref_logprobs = torch.tensor([[0.0, -LOG2]]), torch.tensor([[-LOG2, 0.0]])
    torch.testing.assert_close(kl_estimate(logprobs, ref_logprobs), torch.tensor([[LOG2, -LOG2]]))
    torch.testing.assert_close(kl_estimate(logprobs, ref_logprobs, "k2"), torch.full((1, 2), LOG2**2 / 2))
    torch.testing.assert_close(kl_estimate(logprobs, ref_logprobs, "k3"), torch.tensor([[LOG2 - 0.5, 1 - LOG2]]))


def test_k1_and_k3_are_unbiased():
    # Under p = (1/4, 3/4) and q = (1/2, 1/2) the expectation of either is KL(p || q) = 1/4 log 1/2 + 3/4 log 3/2.
    p, q = torch.tensor([[0.25, 0.75]]), torch.tensor([[0.5, 0.5]])
    exact = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    for estimator in ("k1", "k3"):
        assert (p * kl_estimate(p.log(), q.log(), estimator)).sum().item() == pytest.approx(exact)


def test_an_unknown_estimator_is_refused():
    with pytest.raises(ValueError, match="estimator is 'k4'; it must be one of k1, k2, k3"):
        kl_estimate(torch.zeros(1, 1), torch.zeros(1, 1), "k4")


def test_token_rewards_by_hand():
    # kl_coef 0.1. Row 0: r = (1, -2): (-0.1, +0.2 + 5). Row 1 has one token, r = 3: -0.3 - 1.
    logprobs = torch.tensor([[-1.0, -4.0], [-1.0, math.nan]])
    ref_logprobs = torch.tensor([[-2.0, -2.0], [-4.0, math.inf]])
    mask = torch.tensor([[True, True], [True, False]])
    rewards = token_rewards(torch.tensor([5.0, -1.0]), logprobs, ref_logprobs, mask, kl_coef=0.1)
    torch.testing.assert_close(rewards, torch.tensor([[-0.1, 5.2], [-1.3, 0.0]]))


def test_token_rewards_carry_no_gradient():
    logprobs = torch.zeros(1, 2, requires_grad=True)
    rewards = token_rewards(torch.ones(1), logprobs, torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), 0.1)
    assert not rewards.requires_grad


def test_a_nan_at_a_real_token_surfaces_in_its_reward():
    mask = torch.ones(1, 2, dtype=torch.bool)
    rewards = token_rewards(torch.ones(1), torch.zeros(1, 2), torch.tensor([[math.nan, 0.0]]), mask, 0.1)
    assert rewards.isnan().tolist() == [[True, False]]


def test_a_negative_kl_coef_is_refused():
    mask = torch.ones(1, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"kl_coef is -0\.1"):
        token_rewards(torch.ones(1), torch.zeros(1, 1), torch.zeros(1, 1), mask, -0.1)


def test_the_fixed_controller_keeps_its_coef():
    controller = FixedKlController(0.05)
    controller.update(kl=100.0, num_samples=64)
    assert controller.coef == 0.05


@pytest.mark.parametrize(
    ("kl", "factor"),
    [
        (6.0, 1.0),  # on target
        (6.6, 1.01),  # 10 % above: 1 + 0.1 * 64 / 640
        (60.0, 1.02),  # far above, clipped to +0.2: 1 + 0.2 * 0.1
        (0.0, 0.98),  # far below, clipped to -0.2
    ],
)
def test_the_adaptive_controller_by_hand(kl: float, factor: float):
    controller = AdaptiveKlController(0.5, target=6.0, horizon=640)
    controller.update(kl, num_samples=64)
    assert controller.coef == pytest.approx(0.5 * factor)


@pytest.mark.parametrize(
    "make", [lambda: FixedKlController(1.0), lambda: AdaptiveKlController(1.0, target=1, horizon=10)]
)
def test_a_restored_controller_goes_on_where_the_saved_one_stood(make):
    saved, restored = make(), make()
    saved.update(kl=3.0, num_samples=4)
    restored.load_state_dict(saved.state_dict())
    saved.update(kl=0.5, num_samples=4)
    restored.update(kl=0.5, num_samples=4)
    assert restored.coef == saved.coef


def test_controllers_refuse_what_would_make_the_coef_meaningless():
    with pytest.raises(ValueError, match="coef of the KL controller is -1"):
        FixedKlController(-1.0)
    with pytest.raises(ValueError, match="target of the adaptive KL controller is 0"):
        AdaptiveKlController(0.1, target=0, horizon=10)
    controller = AdaptiveKlController(0.1, target=1, horizon=10)
    with pytest.raises(ValueError, match="num_samples is 50"):
        controller.update(kl=0.0, num_samples=50)  # 1 - 0.2 * 50 / 10 = 0
    with pytest.raises(ValueError, match="kl is nan"):
        controller.update(kl=math.nan, num_samples=5)
    assert controller.coef == 0.1
