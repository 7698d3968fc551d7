"""PPO's losses: by hand, against a float64 loop, and whatever way the batch is cut."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rlhf.algorithms.losses import ClippedLoss, aggregate, clipped_policy_loss, clipped_value_loss, entropy_bonus

NAN = math.nan
LENGTHS = (4, 1, 3, 2)
MASK = torch.arange(4) < torch.tensor(LENGTHS)[:, None]
Loss = Callable[..., ClippedLoss]


def random_batch(scale: float) -> list[Tensor]:
    """What moves, what it moved from, and what it is held against: [4, 4] each, NaN at padding."""
    generator = torch.Generator().manual_seed(0)
    batch = [scale * torch.randn(4, 4, generator=generator, dtype=torch.float64) for _ in range(3)]
    return [x.masked_fill(~MASK, NAN) for x in batch]


def loop_policy_loss(logprob: float, old_logprob: float, advantage: float, eps: float) -> float:
    ratio = math.exp(logprob - old_logprob)
    return -min(ratio * advantage, min(max(ratio, 1 - eps), 1 + eps) * advantage)


def loop_value_loss(value: float, old_value: float, target: float, eps: float) -> float:
    near_old = min(max(value, old_value - eps), old_value + eps)
    return 0.5 * max((value - target) ** 2, (near_old - target) ** 2)


BOTH = pytest.mark.parametrize(
    ("loss", "loop"),
    [(clipped_policy_loss, loop_policy_loss), (clipped_value_loss, loop_value_loss)],
    ids=["policy", "value"],
)


def test_policy_clipping_by_hand():
    # Ratios 2, 1/2, 2, 1/2 with advantages +1, +1, -1, -1, eps 0.2. Losses: 2 is cut to 1.2: -1.2; 1/2 is not cut where
    # cutting would pay (min(0.5, 0.8)): -0.5; min(-2, -1.2): 2; min(-0.5, -0.8): cut to 0.8.
    logprobs = torch.tensor([[2.0, 0.5, 2.0, 0.5, 1.0]]).log()
    logprobs[0, 4] = NAN
    loss = clipped_policy_loss(
        logprobs,
        torch.zeros(1, 5),
        torch.tensor([[1.0, 1.0, -1.0, -1.0, NAN]]),
        torch.tensor([[True, True, True, True, False]]),
        clip_eps_low=0.2,
        clip_eps_high=0.2,
    )
    torch.testing.assert_close(loss.token_losses, torch.tensor([[-1.2, -0.5, 2.0, 0.8, 0.0]]))
    assert loss.clipped.tolist() == [[True, False, False, True, False]]


def test_clipped_tokens_have_no_gradient_and_the_others_have_that_of_the_ratio():
    # d(-rho A)/d logprob = -rho A: -0.5 for the second token (rho 1/2, A 1), 2 for the third (rho 2, A -1).
    logprobs = torch.tensor([[2.0, 0.5, 2.0, 0.5]]).log().requires_grad_()
    loss = clipped_policy_loss(
        logprobs, torch.zeros(1, 4), torch.tensor([[1.0, 1.0, -1.0, -1.0]]), torch.ones(1, 4, dtype=torch.bool)
    )
    loss.token_losses.sum().backward()
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad, torch.tensor([[0.0, -0.5, 2.0, 0.0]]))


def test_the_two_sides_of_the_clip_are_set_apart():
    # Ratios 1.25 and 0.7 with eps_low 0.4, eps_high 0.2: 1.25 is cut to 1.2 for A 1; 0.7 is within 0.6 for A -1.
    logprobs = torch.tensor([[1.25, 0.7]]).log()
    mask = torch.ones(1, 2, dtype=torch.bool)
    loss = clipped_policy_loss(
        logprobs, torch.zeros(1, 2), torch.tensor([[1.0, -1.0]]), mask, clip_eps_low=0.4, clip_eps_high=0.2
    )
    torch.testing.assert_close(loss.token_losses, torch.tensor([[-1.2, 0.7]]))
    assert loss.clipped.tolist() == [[True, False]]


def test_dual_clip_bounds_the_loss_of_negative_advantages_alone():
    # Ratio 5: A -2 costs 10, at most 3 * 2 = 6. A 2 gains 1.2 * 2 as ever. Ratio 2.5, A -2: 5, under the bound.
    logprobs = torch.tensor([[5.0, 5.0, 2.5]]).log().requires_grad_()
    advantages = torch.tensor([[-2.0, 2.0, -2.0]])
    loss = clipped_policy_loss(
        logprobs, torch.zeros(1, 3), advantages, torch.ones(1, 3, dtype=torch.bool), dual_clip=3.0
    )
    loss.token_losses.sum().backward()
    torch.testing.assert_close(loss.token_losses.detach(), torch.tensor([[6.0, -2.4, 5.0]]))
    assert loss.clipped.tolist() == [[True, True, False]]
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad, torch.tensor([[0.0, 0.0, 5.0]]))


def test_at_the_old_weights_the_gradient_is_that_of_the_policy_gradient():
    # rho = 1 everywhere: d(-rho A)/d logprob = -A, and nothing is clipped.
    logprobs = torch.full((1, 3), -2.0, requires_grad=True)
    advantages = torch.tensor([[1.0, -3.0, 0.5]])
    loss = clipped_policy_loss(logprobs, logprobs.detach(), advantages, torch.ones(1, 3, dtype=torch.bool))
    loss.token_losses.sum().backward()
    assert logprobs.grad is not None
    assert torch.equal(logprobs.grad, -advantages)
    assert not loss.clipped.any()


def test_value_clipping_by_hand():
    # V_old 0, eps 0.2. V 1, R 2: (1/2)(-1)^2 against clipped 0.2: (1/2)(1.8)^2 = 1.62, clipped.
    # V 1, R 0: (1/2) 1 against (1/2) 0.04: not clipped. V 0.1, R 1: the clip does nothing: (1/2) 0.81.
    values = torch.tensor([[1.0, 1.0, 0.1, NAN]], requires_grad=True)
    loss = clipped_value_loss(
        values,
        torch.tensor([[0.0, 0.0, 0.0, NAN]]),
        torch.tensor([[2.0, 0.0, 1.0, NAN]]),
        torch.tensor([[True, True, True, False]]),
        value_clip_eps=0.2,
    )
    torch.testing.assert_close(loss.token_losses.detach(), torch.tensor([[1.62, 0.5, 0.405, 0.0]]))
    assert loss.clipped.tolist() == [[True, False, False, False]]
    loss.token_losses.sum().backward()
    # V - R where it is not clipped, 0 where it is. In the third, both branches are equal and share the gradient.
    assert values.grad is not None
    torch.testing.assert_close(values.grad, torch.tensor([[0.0, 1.0, -0.9, 0.0]]))


@BOTH
def test_losses_equal_a_float64_loop(loss: Loss, loop: Callable[..., float]):
    moving, old, target = random_batch(0.5)
    token_losses = loss(moving, old, target, MASK).token_losses
    for row, length in enumerate(LENGTHS):
        for t in range(length):
            expected = loop(moving[row, t].item(), old[row, t].item(), target[row, t].item(), 0.2)
            assert token_losses[row, t].item() == pytest.approx(expected)
        assert token_losses[row, length:].tolist() == [0.0] * (4 - length)


def loss_and_gradient(loss: Loss, pieces: list[slice]) -> tuple[Tensor, Tensor]:
    """The sum of the aggregated losses of the pieces, and what their backward passes accumulate."""
    moving, old, target = random_batch(0.5)
    moving.requires_grad_()
    total = torch.zeros((), dtype=torch.float64)
    for piece in pieces:
        longest = max(LENGTHS[piece])
        part = (x[piece, :longest] for x in (moving, old, target))
        mask = MASK[piece, :longest]
        micro = aggregate(loss(*part, mask).token_losses, mask, num_tokens_global=sum(LENGTHS))
        micro.backward()
        total += micro.detach()
    assert moving.grad is not None
    return total, moving.grad


@BOTH
@pytest.mark.parametrize(
    "pieces", [[slice(0, 1), slice(1, 4)], [slice(i, i + 1) for i in range(4)]], ids=["1 + 3", "one by one"]
)
def test_loss_and_gradient_do_not_depend_on_the_micro_batches(loss: Loss, loop: object, pieces: list[slice]):
    torch.testing.assert_close(loss_and_gradient(loss, pieces), loss_and_gradient(loss, [slice(0, 4)]))


@BOTH
def test_nan_in_padding_reaches_neither_loss_nor_gradient(loss: Loss, loop: object):
    total, gradient = loss_and_gradient(loss, [slice(0, 4)])
    assert total.isfinite()
    assert torch.equal(gradient[~MASK], torch.zeros(6, dtype=torch.float64))
    assert gradient.isfinite().all()


@BOTH
@pytest.mark.parametrize("argument", [0, 1, 2])
def test_a_nan_at_a_real_token_surfaces(loss: Loss, loop: object, argument: int):
    batch = random_batch(0.5)
    batch[argument][2, 1] = NAN
    assert aggregate(loss(*batch, MASK).token_losses, MASK, num_tokens_global=10).isnan()


def test_token_mean_by_hand():
    # Tokens 1, 2 and 6 of a batch that has 10 tokens in all: 9 / 10.
    losses = torch.tensor([[1.0, 2.0], [6.0, NAN]])
    mask = torch.tensor([[True, True], [True, False]])
    torch.testing.assert_close(aggregate(losses, mask, num_tokens_global=10), torch.tensor(0.9))


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("token-mean", 15 / 4),  # (1 + 2 + 3 + 9) / 4 tokens
        ("sequence-mean-token-sum", 15 / 2),  # (6 + 9) / 2 sequences
        ("sequence-mean-token-mean", 11 / 2),  # (6 / 3 + 9 / 1) / 2
        ("token-sum-over-constant", 15 / 20),  # (6 + 9) / (2 * 10)
    ],
)
def test_each_way_to_aggregate_by_hand(mode: str, expected: float):
    token_losses = torch.tensor([[1.0, 2.0, 3.0], [9.0, NAN, NAN]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    loss = aggregate(token_losses, mask, mode, num_tokens_global=4, num_sequences_global=2, max_completion_tokens=10)
    assert loss.item() == pytest.approx(expected)


@pytest.mark.parametrize("mode", ["token-mean", "sequence-mean-token-sum", "sequence-mean-token-mean"])
def test_a_micro_batch_of_masked_sequences_adds_nothing(mode: str):
    x = torch.full((2, 2), NAN, requires_grad=True)
    loss = aggregate(x, torch.zeros(2, 2, dtype=torch.bool), mode, num_tokens_global=4, num_sequences_global=4)
    loss.backward()
    assert loss.item() == 0.0
    assert x.grad is not None
    assert not x.grad.any()


def test_the_entropy_bonus_pulls_entropies_up():
    entropies = torch.tensor([[2.0, NAN]], requires_grad=True)
    bonus = entropy_bonus(entropies, torch.tensor([[True, False]]))
    bonus.sum().backward()
    assert bonus.tolist() == [[-2.0, 0.0]]
    assert entropies.grad is not None
    assert entropies.grad.tolist() == [[-1.0, 0.0]]


def test_wrong_arguments_are_refused_by_name():
    x, mask = torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"advantages \[1, 3\]"):
        clipped_policy_loss(x, x, torch.zeros(1, 3), mask)
    with pytest.raises(ValueError, match=r"clip_eps_low is 1\.0; it must be above 0 and below 1"):
        clipped_policy_loss(x, x, x, mask, clip_eps_low=1.0)
    with pytest.raises(ValueError, match="value_clip_eps is 0"):
        clipped_value_loss(x, x, x, mask, value_clip_eps=0)
    with pytest.raises(ValueError, match="completion_mask selects no token"):
        clipped_policy_loss(x, x, x, ~mask)
    with pytest.raises(ValueError, match="num_tokens_global is 0"):
        aggregate(x, mask, num_tokens_global=0)
    with pytest.raises(ValueError, match="clip_eps_high is 0"):
        clipped_policy_loss(x, x, x, mask, clip_eps_high=0)
    with pytest.raises(ValueError, match=r"dual_clip is 1\.0; it must be above 1"):
        clipped_policy_loss(x, x, x, mask, dual_clip=1.0)
    with pytest.raises(ValueError, match="num_sequences_global is None; mode 'sequence-mean-token-sum' needs it"):
        aggregate(x, mask, "sequence-mean-token-sum", num_tokens_global=2)
    with pytest.raises(ValueError, match="max_completion_tokens is None; mode 'token-sum-over-constant' needs it"):
        aggregate(x, mask, "token-sum-over-constant", num_sequences_global=1)
    with pytest.raises(ValueError, match="mode is 'sum'"):
        aggregate(x, mask, "sum", num_tokens_global=1)
