"""Preference losses on a policy's log-probabilities, by hand."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rlhf.algorithms.preference import dpo_loss, kto_loss, orpo_loss, simpo_loss

LOG3 = math.log(3.0)
# Two pairs. Log-ratios to the reference: chosen +4 log 3 and 0, rejected -6 log 3 and 0; with beta 0.1 the implied
# rewards differ by log 3 (sigmoid 3/4) and by 0 (sigmoid 1/2).
CHOSEN = torch.tensor([-10.0 + 4 * LOG3, -5.0])
REJECTED = torch.tensor([-20.0 - 6 * LOG3, -7.0])
REFERENCE = torch.tensor([-10.0, -5.0]), torch.tensor([-20.0, -7.0])
LENGTHS = {"chosen_lengths": torch.tensor([4, 1]), "rejected_lengths": torch.tensor([2, 1])}


@pytest.mark.parametrize(
    ("variant", "smoothing", "expected"),
    [
        ("sigmoid", 0.0, [-math.log(3 / 4), math.log(2)]),
        ("sigmoid", 0.1, [-0.9 * math.log(3 / 4) - 0.1 * math.log(1 / 4), math.log(2)]),
        ("robust", 0.1, [(-0.9 * math.log(3 / 4) + 0.1 * math.log(1 / 4)) / 0.8, math.log(2)]),
        ("hinge", 0.0, [0.0, 1.0]),  # log 3 is above 1
        ("ipo", 0.0, [(LOG3 + 3 * LOG3 - 5) ** 2, 25.0]),  # 4 log 3 / 4 - (-6 log 3 / 2), less 1 / (2 beta) = 5
    ],
)
def test_dpo_variants_by_hand(variant: str, smoothing: float, expected: list[float]):
    result = dpo_loss(CHOSEN, REJECTED, *REFERENCE, 0.1, variant, smoothing, **LENGTHS)
    assert result.losses.tolist() == pytest.approx(expected, abs=1e-5)
    assert result.chosen_rewards.tolist() == pytest.approx([0.4 * LOG3, 0.0], abs=1e-5)
    assert result.rejected_rewards.tolist() == pytest.approx([-0.6 * LOG3, 0.0], abs=1e-5)


def test_soft_labels_weigh_the_loss_of_the_pair_turned_round():
    # -(0.7 log 3/4 + 0.3 log 1/4); at 1/2 both are log 2.
    result = dpo_loss(CHOSEN, REJECTED, *REFERENCE, target=torch.tensor([0.7, 0.2]))
    assert result.losses.tolist() == pytest.approx([-0.7 * math.log(3 / 4) - 0.3 * math.log(1 / 4), math.log(2)])


def test_the_gradient_reaches_the_policy_alone():
    # d/d chosen of -log sigmoid(beta h) = -beta (1 - 3/4), opposite for the rejected.
    chosen, rejected = CHOSEN.clone().requires_grad_(), REJECTED.clone().requires_grad_()
    result = dpo_loss(chosen, rejected, *REFERENCE)
    result.losses.sum().backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    torch.testing.assert_close(chosen.grad, torch.tensor([-0.025, -0.05]))
    torch.testing.assert_close(rejected.grad, -chosen.grad)
    assert not result.chosen_rewards.requires_grad
    assert not result.rejected_rewards.requires_grad


def test_kto_by_hand():
    # beta 1, kl log 3. Log-ratios 2 log 3 (good): 1 - 3/4; log 3 (bad): 1 - 1/2; 0 (bad): 1 - 3/4.
    ref = torch.tensor([-9.0, -9.0, -9.0])
    policy = ref + torch.tensor([2 * LOG3, LOG3, 0.0])
    result = kto_loss(policy, ref, torch.tensor([True, False, False]), LOG3, 1.0, 2.0, 1.0)
    assert result.losses.tolist() == pytest.approx([0.5, 0.5, 0.25], abs=1e-5)
    assert result.rewards.tolist() == pytest.approx([2 * LOG3, LOG3, 0.0], abs=1e-5)


def test_a_kl_below_zero_counts_as_zero_and_gets_no_gradient():
    kl = torch.tensor(-5.0, requires_grad=True)
    policy = torch.zeros(1, requires_grad=True)
    loss = kto_loss(policy, torch.zeros(1), torch.tensor([True]), kl, 1.0).losses
    loss.sum().backward()
    assert loss.tolist() == [0.5]
    assert kl.grad is None
    # -beta sigmoid'(0) = -1/4
    assert policy.grad is not None
    assert policy.grad.tolist() == [-0.25]


def test_simpo_by_hand():
    # 2 (log 3 - 0) - log 3 = log 3.
    result = simpo_loss(torch.tensor([LOG3 - 5.0]), torch.tensor([-5.0]), beta=2.0, margin=LOG3)
    assert result.losses.item() == pytest.approx(-math.log(3 / 4), abs=1e-5)


def test_orpo_by_hand():
    # Probabilities per token 3/4 and 1/2: odds 3 and 1, sigmoid(log 3) = 3/4.
    result = orpo_loss(torch.tensor([0.75]).log(), torch.tensor([0.5]).log(), odds_weight=0.2)
    assert result.losses.item() == pytest.approx(-math.log(3 / 4) - 0.2 * math.log(3 / 4))


def test_orpo_keeps_its_digits_where_the_model_is_almost_sure():
    # 1 - exp(-1e-12) = 1e-12: the odds are 1e12 and 1, and log sigmoid(log 1e12) is -1e-12.
    chosen = torch.tensor([-1e-12], dtype=torch.float64, requires_grad=True)
    result = orpo_loss(chosen, torch.tensor([0.5], dtype=torch.float64).log(), odds_weight=1.0)
    result.losses.sum().backward()
    assert result.losses.item() == pytest.approx(2e-12, rel=1e-3)
    assert chosen.grad is not None
    assert chosen.grad.isfinite().all()


FOUR = [torch.randn(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in range(4)]
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **{
        variant: lambda c, r, variant=variant: (
            dpo_loss(
                c,
                r,
                *FOUR[2:],
                0.5,
                variant,
                chosen_lengths=torch.arange(1, 5),
                rejected_lengths=torch.arange(4, 0, -1),
            ).losses
        )
        for variant in ("sigmoid", "hinge", "ipo", "robust")
    },
    "kto": lambda c, r: kto_loss(c - r, FOUR[2], torch.tensor([True, False, True, False]), 0.3, 0.5).losses,
    "simpo": lambda c, r: simpo_loss(c, r).losses,
    "orpo": lambda c, r: orpo_loss(-c.exp(), -r.exp()).losses,
}


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_gradients_are_those_of_finite_differences(loss: Callable[[Tensor, Tensor], Tensor]):
    arguments = tuple(x.clone().requires_grad_() for x in FOUR[:2])
    assert torch.autograd.gradcheck(loss, arguments)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_nan_surfaces_and_spoils_its_own_pair_alone(loss: Callable[[Tensor, Tensor], Tensor]):
    chosen = FOUR[0].clone()
    chosen[2] = math.nan
    assert loss(chosen, FOUR[1]).isnan().tolist() == [False, False, True, False]


@pytest.mark.parametrize("variant", ["sigmoid", "robust"])
def test_extreme_log_ratios_stay_finite(variant: str):
    chosen = torch.tensor([1e5, -1e5], requires_grad=True)
    losses = dpo_loss(chosen, torch.zeros(2), torch.zeros(2), torch.zeros(2), 1.0, variant, 0.1).losses
    losses.sum().backward()
    assert losses.isfinite().all()
    assert chosen.grad is not None
    assert chosen.grad.isfinite().all()


def test_wrong_arguments_are_refused_by_name():
    x = torch.zeros(2)
    with pytest.raises(ValueError, match=r"ref_chosen_logps \[1\]"):
        dpo_loss(x, x, torch.zeros(1), x)
    with pytest.raises(ValueError, match="beta is 0; it must be above 0"):
        dpo_loss(x, x, x, x, beta=0)
    with pytest.raises(ValueError, match="variant is 'dpo'; it must be one of sigmoid, ipo, hinge, robust"):
        dpo_loss(x, x, x, x, variant="dpo")
    with pytest.raises(ValueError, match=r"label_smoothing is 0\.5; it must be in \[0, 0\.5\)"):
        dpo_loss(x, x, x, x, label_smoothing=0.5)
    with pytest.raises(ValueError, match=r"label_smoothing is 0\.1; variant 'hinge' has none"):
        dpo_loss(x, x, x, x, variant="hinge", label_smoothing=0.1)
    with pytest.raises(ValueError, match="chosen_lengths is None; variant 'ipo'"):
        dpo_loss(x, x, x, x, variant="ipo")
    with pytest.raises(ValueError, match="rejected_lengths has 0; every completion"):
        dpo_loss(x, x, x, x, variant="ipo", chosen_lengths=torch.ones(2), rejected_lengths=torch.tensor([1, 0]))
    with pytest.raises(ValueError, match="is_desirable has dtype"):
        kto_loss(x, x, x, 0.0)
    with pytest.raises(ValueError, match=r"undesirable_weight is -1"):
        kto_loss(x, x, x.bool(), 0.0, undesirable_weight=-1)
    with pytest.raises(ValueError, match=r"margin is -1"):
        simpo_loss(x, x, margin=-1)
    with pytest.raises(ValueError, match="odds_weight is 0"):
        orpo_loss(x, x, 0)
