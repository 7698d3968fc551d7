"""Masked arithmetic: padding cannot leak, and wrong shapes are named."""

import math

import pytest
import torch

from rlhf.algorithms.masking import (
    masked_mean,
    require_in_open_interval,
    require_right_padded,
    require_same_shape,
    select,
)


def test_select_clears_padding_and_its_gradient():
    x = torch.tensor([2.0, math.nan, math.inf], requires_grad=True)
    # exp'(2) = e^2 at the real position; the padding would give NaN if it were multiplied by 0.
    selected = select(x, torch.tensor([True, False, False])).exp()
    selected[0].backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.tensor([math.exp(2.0), 0.0, 0.0]))


def test_masked_mean_by_hand():
    x = torch.tensor([[1.0, 2.0, math.nan], [6.0, math.nan, math.nan]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert masked_mean(x, mask).item() == 3.0  # (1 + 2 + 6) / 3


def test_a_nan_at_a_real_position_surfaces():
    assert masked_mean(torch.tensor([1.0, math.nan]), torch.tensor([True, True])).isnan()


def test_a_mask_that_selects_nothing_is_refused():
    with pytest.raises(ValueError, match="mask selects no token"):
        masked_mean(torch.ones(2), torch.tensor([False, False]))


def test_shapes_that_differ_are_named():
    with pytest.raises(ValueError, match=r"values \[2, 3\], returns \[2, 4\]"):
        require_same_shape(values=torch.zeros(2, 3), returns=torch.zeros(2, 4))


@pytest.mark.parametrize("row", [[False, True, True], [True, False, True], [False, False, False]])
def test_masks_that_are_not_right_padded_are_refused(row: list[bool]):
    with pytest.raises(ValueError, match="completion_mask must be"):
        require_right_padded("completion_mask", torch.tensor([[True, True, True], row]))


def test_right_padded_masks_pass():
    require_right_padded("completion_mask", torch.tensor([[True, True], [True, False]]))


@pytest.mark.parametrize("value", [0.0, 1.0, -0.5, math.nan])
def test_the_ends_of_an_open_interval_are_outside(value: float):
    with pytest.raises(ValueError, match="clip_eps is"):
        require_in_open_interval("clip_eps", value, 0, 1)
