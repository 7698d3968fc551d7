"""Scores before they are rewards, by hand."""

import json
import math

import pytest
import torch

from rlhf.algorithms.rewards import RunningMoments, clip_rewards, missing_stop_penalty, overlong_penalty


def test_running_moments_by_hand():
    # 1, 3 and then 5, 7: mean 4, variance (9 + 1 + 1 + 9) / 4 = 5.
    moments = RunningMoments()
    assert (moments.mean, moments.std) == (0.0, 0.0)
    moments.update(torch.tensor([1.0, 3.0]))
    moments.update(torch.tensor([[5.0], [7.0]]))
    assert (moments.count, moments.mean, moments.std) == (4, 4.0, math.sqrt(5))
    torch.testing.assert_close(moments.normalize(torch.tensor([4.0, 4.0 + math.sqrt(5)])), torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(moments.normalize(torch.tensor([math.sqrt(5)]), shift_mean=False), torch.tensor([1.0]))


def test_moments_of_large_rewards_close_together_keep_their_digits():
    # A difference of 1 at 10^8: the sum of squares less the square of the sum would have lost it.
    moments = RunningMoments()
    for value in (1e8, 1e8 + 1, 1e8 + 2):
        moments.update(torch.tensor([value], dtype=torch.float64))
    assert moments.std == pytest.approx(math.sqrt(2 / 3))


def test_moments_go_on_from_a_saved_state_bit_for_bit():
    generator = torch.Generator().manual_seed(0)
    straight, resumed = RunningMoments(), RunningMoments()
    first, second = torch.randn(2, 5, generator=generator)
    straight.update(first)
    resumed.load_state_dict(json.loads(json.dumps(straight.state_dict())))
    for moments in (straight, resumed):
        moments.update(second)
    assert resumed.state_dict() == straight.state_dict()


def test_moments_refuse_what_would_spoil_them():
    moments = RunningMoments()
    with pytest.raises(ValueError, match="not finite"):
        moments.update(torch.tensor([1.0, math.nan]))
    assert moments.count == 0
    with pytest.raises(ValueError, match="count is 0 and std 0"):
        moments.normalize(torch.ones(1))
    with pytest.raises(ValueError, match="are no running moments"):
        moments.load_state_dict({"count": -1, "mean": 0.0, "squares": 0.0})


def test_clipping_says_what_it_clipped_and_lets_a_nan_through():
    clipped, was_clipped = clip_rewards(torch.tensor([-9.0, -5.0, 1.0, 7.0, math.nan]), 5.0)
    assert clipped[:4].tolist() == [-5.0, -5.0, 1.0, 5.0]
    assert clipped[4].isnan()
    assert was_clipped.tolist() == [True, False, False, True, False]


def test_a_missing_stop_costs_the_penalty():
    assert missing_stop_penalty(torch.tensor([True, False]), 1.5).tolist() == [0.0, -1.5]
    assert missing_stop_penalty(torch.tensor([False]), 0.0).tolist() == [0.0]


def test_the_overlong_penalty_grows_over_the_buffer():
    # Limit 10, buffer 4: free up to 6, then -1/4 a token, -1 from 10 on.
    penalties = overlong_penalty(torch.tensor([1, 6, 7, 9, 10, 11]), 10, 4)
    assert penalties.tolist() == [0.0, 0.0, -0.25, -0.75, -1.0, -1.0]


def test_wrong_arguments_are_refused_by_name():
    with pytest.raises(ValueError, match="bound is 0"):
        clip_rewards(torch.ones(1), 0)
    with pytest.raises(ValueError, match=r"penalty is -1\.0; it must be at least 0"):
        missing_stop_penalty(torch.tensor([True]), -1.0)
    with pytest.raises(ValueError, match=r"stopped has dtype torch\.int64"):
        missing_stop_penalty(torch.tensor([1]), 1.0)
    with pytest.raises(ValueError, match="buffer_tokens is 11; it must be from 1 to max_completion_tokens, 10"):
        overlong_penalty(torch.tensor([1]), 10, 11)
