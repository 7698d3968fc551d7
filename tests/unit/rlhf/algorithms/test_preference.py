"""Losses on preference pairs."""

import math

import pytest
import torch

from rlhf.algorithms.preference import bradley_terry_loss, ranking_loss


def test_bradley_terry_by_hand():
    # sigmoid(log 3) = 3/4, sigmoid(0) = 1/2, sigmoid(-log 3) = 1/4.
    chosen = torch.tensor([math.log(3.0), 5.0, 0.0])
    rejected = torch.tensor([0.0, 5.0, math.log(3.0)])
    expected = torch.tensor([-math.log(3 / 4), -math.log(1 / 2), -math.log(1 / 4)])
    torch.testing.assert_close(bradley_terry_loss(chosen, rejected), expected)


def test_the_margin_is_asked_of_the_difference():
    # A difference of 2 log 3 less a margin of log 3 is log 3.
    loss = bradley_terry_loss(torch.tensor([2 * math.log(3.0)]), torch.zeros(1), margin=torch.tensor([math.log(3.0)]))
    torch.testing.assert_close(loss, torch.tensor([-math.log(3 / 4)]))


def test_centring_adds_the_square_of_the_sum():
    # chosen + rejected = 3: 0.1 * 9 on top of -log sigmoid(1).
    loss = bradley_terry_loss(torch.tensor([2.0]), torch.tensor([1.0]), center_coef=0.1)
    torch.testing.assert_close(loss, torch.tensor([0.9 + math.log(1 + math.exp(-1.0))]))


def test_a_soft_label_weighs_both_answers():
    # sigmoid(log 3) = 3/4: -(0.6 log 3/4 + 0.4 log 1/4). Its gradient is 3/4 - 0.6: none where the model says 0.6.
    chosen = torch.tensor([math.log(3.0), math.log(1.5)], requires_grad=True)
    loss = bradley_terry_loss(chosen, torch.zeros(2), target=torch.full((2,), 0.6))
    loss.sum().backward()
    assert loss[0].item() == pytest.approx(-0.6 * math.log(3 / 4) - 0.4 * math.log(1 / 4))
    assert chosen.grad is not None
    torch.testing.assert_close(chosen.grad, torch.tensor([0.15, 0.0]))


def test_a_ranking_is_the_mean_of_all_its_pairs():
    # Scores log 9, log 3, 0, best first: differences log 3, log 9, log 3 over 3 pairs: 3/4, 9/10, 3/4.
    loss = ranking_loss(torch.tensor([math.log(9.0), math.log(3.0), 0.0]))
    assert loss.item() == pytest.approx(-(2 * math.log(3 / 4) + math.log(9 / 10)) / 3)
    # Margins of log 3 between neighbours leave 1/2 for them, and 3/4 for the outer pair with log 3 too.
    margins = torch.full((3, 3), math.log(3.0))
    loss = ranking_loss(torch.tensor([math.log(9.0), math.log(3.0), 0.0]), margins)
    assert loss.item() == pytest.approx(-(2 * math.log(1 / 2) + math.log(3 / 4)) / 3)


def test_extreme_differences_stay_finite_in_loss_and_gradient():
    chosen = torch.tensor([1e4, -1e4], requires_grad=True)
    loss = bradley_terry_loss(chosen, torch.zeros(2))
    loss.sum().backward()
    assert loss.tolist() == [0.0, 1e4]
    assert chosen.grad is not None
    assert chosen.grad.tolist() == [0.0, -1.0]


def test_the_gradient_is_the_probability_of_the_other_choice():
    # d/d chosen of -log sigmoid(chosen - rejected) = sigmoid(...) - 1 = -1/4 at log 3, and the opposite for rejected.
    chosen = torch.tensor([math.log(3.0)], requires_grad=True)
    rejected = torch.zeros(1, requires_grad=True)
    bradley_terry_loss(chosen, rejected).sum().backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad.item() == pytest.approx(-0.25)
    assert rejected.grad.item() == pytest.approx(0.25)


def test_loss_and_gradient_do_not_depend_on_the_micro_batches():
    generator = torch.Generator().manual_seed(0)
    rejected = torch.randn(6, generator=generator, dtype=torch.float64)
    start = torch.randn(6, generator=generator, dtype=torch.float64)
    results = []
    for size in (6, 4, 1):
        chosen = start.clone().requires_grad_()
        parts = [
            bradley_terry_loss(part, other, center_coef=0.01).sum() / 6
            for part, other in zip(chosen.split(size), rejected.split(size), strict=True)
        ]
        for part in parts:
            part.backward()
        results.append((sum(part.item() for part in parts), chosen.grad))
    for total, gradient in results[1:]:
        assert total == pytest.approx(results[0][0])
        torch.testing.assert_close(gradient, results[0][1])


def test_a_nan_surfaces():
    assert bradley_terry_loss(torch.tensor([math.nan]), torch.zeros(1)).isnan().all()


def test_wrong_arguments_are_refused_by_name():
    with pytest.raises(ValueError, match=r"chosen_rewards \[2\], rejected_rewards \[1\]"):
        bradley_terry_loss(torch.zeros(2), torch.zeros(1))
    with pytest.raises(ValueError, match=r"margin \[1\]"):
        bradley_terry_loss(torch.zeros(2), torch.zeros(2), margin=torch.zeros(1))
    with pytest.raises(ValueError, match=r"target holds values from 0\.5 to 1\.5"):
        bradley_terry_loss(torch.zeros(2), torch.zeros(2), target=torch.tensor([0.5, 1.5]))
    with pytest.raises(ValueError, match=r"rewards has shape \[1\]"):
        ranking_loss(torch.zeros(1))
    with pytest.raises(ValueError, match=r"margins has shape \[2\]"):
        ranking_loss(torch.zeros(2), torch.zeros(2))
    with pytest.raises(ValueError, match="center_coef is -1"):
        bradley_terry_loss(torch.zeros(2), torch.zeros(2), center_coef=-1.0)
