"""Generalised advantage estimation and whitening, by hand and against a float64 loop."""

import math

import pytest
import torch

from rlhf.algorithms.advantages import gae, whiten

NAN = math.nan


def loop_gae(rewards: list[float], values: list[float], gamma: float, gae_lambda: float) -> list[float]:
    """The definition as a sum for one completion: A_t = sum_l (gamma lambda)^l delta_{t+l}."""
    following = [*values[1:], 0.0]
    deltas = [r + gamma * n - v for r, n, v in zip(rewards, following, values, strict=True)]
    return [
        sum((gamma * gae_lambda) ** (later - t) * deltas[later] for later in range(t, len(deltas)))
        for t in range(len(deltas))
    ]


def test_gae_by_hand():
    # gamma 0.5, lambda 0.5. Row 0: deltas (1 + 0.5*2 - 1, 2 - 2) = (1, 0): A = (1 + 0.25*0, 0), R = A + V = (2, 2).
    # Row 1 has one token: delta = 3 - 1 = 2, R = 3.
    advantages, returns = gae(
        torch.tensor([[1.0, 2.0], [3.0, NAN]]),
        torch.tensor([[1.0, 2.0], [1.0, NAN]]),
        torch.tensor([[True, True], [True, False]]),
        gamma=0.5,
        gae_lambda=0.5,
    )
    assert advantages.tolist() == [[1.0, 0.0], [2.0, 0.0]]
    assert returns.tolist() == [[2.0, 2.0], [3.0, 0.0]]


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.99, 0.0)])
def test_gae_equals_a_loop_over_each_completion_alone(gamma: float, gae_lambda: float):
    generator = torch.Generator().manual_seed(0)
    lengths = [5, 1, 3]
    rewards = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    values = torch.randn(3, 5, generator=generator, dtype=torch.float64)
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    advantages, returns = gae(rewards, values, mask, gamma, gae_lambda)
    for row, length in enumerate(lengths):
        expected = loop_gae(rewards[row, :length].tolist(), values[row, :length].tolist(), gamma, gae_lambda)
        assert advantages[row, :length].tolist() == pytest.approx(expected)
        assert returns[row, :length].tolist() == pytest.approx((advantages + values)[row, :length].tolist())


def test_padding_leaks_neither_into_advantages_nor_returns():
    clean = gae(torch.ones(1, 2), torch.ones(1, 2), torch.ones(1, 2, dtype=torch.bool), 1.0, 0.95)
    padded = gae(
        torch.tensor([[1.0, 1.0, NAN]]),
        torch.tensor([[1.0, 1.0, math.inf]]),
        torch.tensor([[True, True, False]]),
        1.0,
        0.95,
    )
    for whole, cut in zip(padded, clean, strict=True):
        assert torch.equal(whole[:, :2], cut)
        assert whole[0, 2] == 0


def test_a_nan_at_a_real_token_surfaces():
    mask = torch.ones(1, 3, dtype=torch.bool)
    advantages, _ = gae(torch.tensor([[0.0, NAN, 0.0]]), torch.zeros(1, 3), mask, 1.0, 1.0)
    assert advantages.isnan().tolist() == [[True, True, False]]


def test_gae_leaves_its_arguments_and_their_gradients_alone():
    values = torch.ones(1, 2, requires_grad=True)
    rewards = torch.ones(1, 2)
    advantages, returns = gae(rewards, values, torch.tensor([[True, False]]), 1.0, 1.0)
    assert not advantages.requires_grad
    assert not returns.requires_grad
    assert rewards.tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize(("gamma", "gae_lambda", "name"), [(1.1, 0.9, "gamma"), (1.0, -0.1, "gae_lambda")])
def test_factors_out_of_range_are_refused(gamma: float, gae_lambda: float, name: str):
    with pytest.raises(ValueError, match=f"{name} is"):
        gae(torch.ones(1, 1), torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool), gamma, gae_lambda)


def test_left_padding_is_refused():
    with pytest.raises(ValueError, match="completion_mask must be"):
        gae(torch.ones(1, 2), torch.ones(1, 2), torch.tensor([[False, True]]), 1.0, 1.0)


# The valid entries are 1, 3, 5: mean 3, variance (4 + 0 + 4) / 3 = 8/3.
X = torch.tensor([[1.0, 3.0], [5.0, NAN]])
MASK = torch.tensor([[True, True], [True, False]])


def test_whiten_by_hand():
    step = 2 / math.sqrt(8 / 3)
    torch.testing.assert_close(whiten(X, MASK), torch.tensor([[-step, 0.0], [step, 0.0]]))


def test_whiten_keeps_the_mean_if_asked():
    step = 2 / math.sqrt(8 / 3)
    torch.testing.assert_close(whiten(X, MASK, shift_mean=False), torch.tensor([[3 - step, 3.0], [3 + step, 0.0]]))


def test_whiten_of_equal_values_is_zero_and_finite():
    assert whiten(torch.full((1, 3), 7.0), torch.ones(1, 3, dtype=torch.bool)).tolist() == [[0.0, 0.0, 0.0]]


def test_whiten_of_nothing_is_refused():
    with pytest.raises(ValueError, match="mask selects no token"):
        whiten(torch.ones(1, 2), torch.zeros(1, 2, dtype=torch.bool))
