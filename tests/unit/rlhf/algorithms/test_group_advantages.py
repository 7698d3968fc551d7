"""Advantages without a critic, by hand."""

import math

import pytest
import torch

from rlhf.algorithms.advantages import discounted_returns, group_centered, group_relative, leave_one_out, uniform_groups

# Group 7: rewards 0, 3, 6 (mean 3, sample variance (9 + 0 + 9) / 2 = 9). Group 2: 1 and 2. They stand mixed.
REWARDS = torch.tensor([0.0, 1.0, 3.0, 6.0, 2.0])
GROUPS = torch.tensor([7, 2, 7, 7, 2])


def test_group_relative_by_hand():
    half = 0.5 / math.sqrt(0.5)
    expected = torch.tensor([-1.0, -half, 0.0, 1.0, half])
    torch.testing.assert_close(group_relative(REWARDS, GROUPS), expected, rtol=1e-5, atol=1e-5)


def test_without_the_std_only_the_mean_is_taken_off():
    expected = [-3.0, -0.5, 0.0, 3.0, 0.5]
    assert group_relative(REWARDS, GROUPS, normalize_std=False).tolist() == expected
    assert group_centered(REWARDS, GROUPS).tolist() == expected


def test_leave_one_out_by_hand():
    # 0 - (3 + 6) / 2, 3 - (0 + 6) / 2, 6 - (0 + 3) / 2; 1 - 2, 2 - 1.
    assert leave_one_out(REWARDS, GROUPS).tolist() == [-4.5, -1.0, 0.0, 4.5, 1.0]


@pytest.mark.parametrize("reward", [0.1, 0.7, 1e6 + 0.3])
@pytest.mark.parametrize("size", [2, 3, 7])
def test_equal_rewards_are_no_advantage_at_all(reward: float, size: int):
    # In float32 the mean of seven times 0.7 is not 0.7; divided by the std of such errors it would look like learning.
    rewards, groups = torch.full((size,), reward), torch.zeros(size, dtype=torch.int64)
    for advantages in (group_relative, group_centered, leave_one_out):
        assert not advantages(rewards, groups).any()
    assert uniform_groups(rewards, groups).all()


def test_uniform_groups_are_found_by_group():
    rewards = torch.tensor([1.0, 0.5, 1.0, 0.5, 0.4, math.nan, 1.0])
    groups = torch.tensor([0, 1, 0, 1, 1, 2, 2])
    assert uniform_groups(rewards, groups).tolist() == [True, False, True, False, False, False, False]


def test_a_group_of_one_is_refused():
    for function in (group_relative, group_centered, leave_one_out, uniform_groups):
        with pytest.raises(ValueError, match="group_ids has a single completion of group 2; sample at least 2"):
            function(REWARDS[:4], GROUPS[:4])


def test_a_nan_spoils_its_group_alone_and_surfaces():
    rewards = REWARDS.clone()
    rewards[1] = math.nan
    assert group_relative(rewards, GROUPS).isnan().tolist() == [False, True, False, False, True]


def test_rewards_and_groups_must_fit():
    with pytest.raises(ValueError, match=r"rewards \[5\], group_ids \[4\]"):
        group_relative(REWARDS, GROUPS[:4])
    with pytest.raises(ValueError, match=r"rewards has shape \[0\]"):
        leave_one_out(REWARDS[:0], GROUPS[:0])


def test_discounted_returns_by_hand():
    # gamma 1/2: 4, then 2 + 4/2, then 1 + 4/2. Padding holds NaN.
    rewards = torch.tensor([[1.0, 2.0, 4.0], [3.0, math.nan, math.nan]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert discounted_returns(rewards, mask, 0.5).tolist() == [[3.0, 4.0, 4.0], [3.0, 0.0, 0.0]]


def test_discounted_returns_refuse_wrong_arguments():
    with pytest.raises(ValueError, match="gamma is 2"):
        discounted_returns(torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool), 2)
    with pytest.raises(ValueError, match="mask must be"):
        discounted_returns(torch.ones(1, 2), torch.tensor([[False, True]]), 1.0)
