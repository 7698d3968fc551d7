"""Weights and masks for tokens that another model sampled, by hand."""

import math

import pytest
import torch

from rlhf.algorithms.losses import clipped_policy_loss, sequence_ratio_mask, truncated_importance_weights

NAN, INF = math.nan, math.inf


def test_weights_are_ratios_up_to_the_cap():
    # exp(lo - ls): 1/2, 1, 8 cut to 2, infinite cut to 2; then padding.
    old = torch.tensor([[0.5, 1.0, 8.0, 1.0, 1.0]]).log().requires_grad_()
    sampler = torch.tensor([[0.0, 0.0, 0.0, -INF, NAN]])
    mask = torch.tensor([[True, True, True, True, False]])
    weights, clamped = truncated_importance_weights(old, sampler, mask, cap=2.0)
    torch.testing.assert_close(weights, torch.tensor([[0.5, 1.0, 2.0, 2.0, 0.0]]))
    assert clamped.tolist() == [[False, False, True, True, False]]
    assert not weights.requires_grad


def test_weights_scale_the_gradient_and_leave_the_clip_around_the_old_policy():
    # At the old weights rho is 1 whatever sampled the token: nothing is clipped, and the gradient is -weight * A.
    logprobs = torch.full((1, 2), -1.0, requires_grad=True)
    mask = torch.ones(1, 2, dtype=torch.bool)
    sampler = logprobs.detach() - torch.tensor([[math.log(4.0), math.log(0.5)]])
    weights, _ = truncated_importance_weights(logprobs, sampler, mask)
    loss = clipped_policy_loss(logprobs, logprobs.detach(), torch.tensor([[1.0, 3.0]]), mask)
    (weights * loss.token_losses).sum().backward()
    assert not loss.clipped.any()
    assert logprobs.grad is not None
    torch.testing.assert_close(logprobs.grad, torch.tensor([[-2.0, -1.5]]))


def test_sequences_are_kept_by_their_geometric_mean_ratio():
    # Ratios (4, 1/4): mean 1. (4, 1): mean 2. (1/4, 1/4): mean 1/4. One token of ratio 1.4.
    old = torch.tensor([[4.0, 0.25], [4.0, 1.0], [0.25, 0.25], [1.4, NAN]]).log()
    mask = torch.tensor([[True, True], [True, True], [True, True], [True, False]])
    assert sequence_ratio_mask(old, torch.zeros(4, 2), mask, bound=1.5).tolist() == [True, False, False, True]


def test_a_nan_at_a_real_token_is_not_rejected_but_surfaces():
    old = torch.tensor([[NAN, 0.0]])
    mask = torch.ones(1, 2, dtype=torch.bool)
    assert sequence_ratio_mask(old, torch.zeros(1, 2), mask, bound=2.0).tolist() == [True]
    weights, clamped = truncated_importance_weights(old, torch.zeros(1, 2), mask)
    assert weights.isnan().tolist() == [[True, False]]
    assert not clamped.any()


def test_wrong_arguments_are_refused_by_name():
    x, mask = torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"cap is 0; it must be above 0"):
        truncated_importance_weights(x, x, mask, cap=0)
    with pytest.raises(ValueError, match=r"bound is 1\.0; it must be above 1"):
        sequence_ratio_mask(x, x, mask, bound=1.0)
    with pytest.raises(ValueError, match=r"sampler_logprobs \[1, 3\]"):
        truncated_importance_weights(x, torch.zeros(1, 3), mask)
