"""The numbers of a reward model's report, worked by hand."""

import math

import pytest

from rlhf.data.preferences import Choice, PreferenceGroup
from services.trainer.offline.reward_model.accuracy import (
    accuracy_bins,
    confidence_bins,
    expected_calibration_error,
    hit,
    wilson_interval,
)
from services.trainer.offline.reward_model.report import (
    HeldoutPairs,
    describe_ensemble,
    describe_heldout,
    measure_scores,
    probabilities,
)


def test_wilson_interval_by_hand() -> None:
    # rate 0.8, n 10, z 2: center (0.8 + 0.2) / 1.4 = 0.714286; half (2 sqrt(0.016 + 0.01)) / 1.4 = 0.230350
    assert wilson_interval(0.8, 10, z=2.0) == pytest.approx((0.714286 - 0.230350, 0.714286 + 0.230350), abs=1e-5)
    # All right: the upper end is 1 and the lower one n / (n + z^2) = 10 / 14.
    assert wilson_interval(1.0, 10, z=2.0) == pytest.approx((10 / 14, 1.0))
    with pytest.raises(ValueError, match="count is 0"):
        wilson_interval(0.5, 0)


def test_a_difference_of_zero_counts_half() -> None:
    assert [hit(difference) for difference in (0.1, -0.1, 0.0)] == [1.0, 0.0, 0.5]


def test_calibration_by_hand() -> None:
    # Confidences 0.6 (right), 0.9 (right), 0.95 (wrong: 0.05 for the chosen side), of four bins of width 0.125:
    # [0.5, 0.625) has 0.6, accuracy 1; [0.875, 1] has 0.9 and 0.95, mean 0.925, accuracy 1/2.
    bins = confidence_bins([0.6, 0.9, 0.05], [1.0, 1.0, 1.0], num_bins=4)
    assert [(each.low, each.high, each.count) for each in bins] == [(0.5, 0.625, 1), (0.875, 1.0, 2)]
    assert [each.confidence for each in bins] == pytest.approx([0.6, 0.925])
    assert [each.accuracy for each in bins] == [1.0, 0.5]
    # (1 * 0.4 + 2 * 0.425) / 3
    assert expected_calibration_error(bins) == pytest.approx(1.25 / 3)


def test_a_soft_label_is_what_a_calibrated_model_predicts() -> None:
    # 0.75 predicted where 0.75 was said, and 0.25 where 0.25 was: no error. A certain 1.0 where 0.5 was said: 0.5.
    assert expected_calibration_error(confidence_bins([0.75, 0.25], [0.75, 0.25])) == pytest.approx(0.0)
    assert expected_calibration_error(confidence_bins([1.0], [0.5])) == pytest.approx(0.5)


def test_accuracy_bins_hold_one_value_each_or_equally_many_pairs() -> None:
    by_value = accuracy_bins([2.0, 1.0, 2.0, 2.0], [1.0, 0.0, 1.0, 0.0])
    assert [(each.low, each.high, each.count, each.accuracy) for each in by_value] == [
        (1.0, 1.0, 1, 0.0),
        (2.0, 2.0, 3, pytest.approx(2 / 3)),
    ]
    halves = accuracy_bins([0.4, 0.1, 0.3, 0.2], [1.0, 0.0, 1.0, 0.5], num_bins=2)
    assert [(each.low, each.high, each.accuracy) for each in halves] == [(0.1, 0.2, 0.25), (0.3, 0.4, 1.0)]
    assert halves[1].accuracy_low == pytest.approx(wilson_interval(1.0, 2)[0])
    assert accuracy_bins([], []) == []


GROUPS = [
    PreferenceGroup((1,), ((2,), (3, 3), (4, 4, 4)), (Choice(0, 1), Choice(0, 2), Choice(1, 2))),
    PreferenceGroup((5,), ((6,), (7,)), (Choice(1, 0, 0.5, 0.0),)),
    PreferenceGroup((8,), ((9,), (9, 9)), (Choice(0, 1, 1.0, 2.0),)),
]


def test_groups_are_laid_flat_and_an_undecided_pair_is_in_no_accuracy() -> None:
    pairs = HeldoutPairs.of(GROUPS)
    assert pairs.lengths == [1, 2, 3, 1, 1, 1, 2]
    assert [(each.chosen, each.rejected) for each in pairs.choices] == [(0, 1), (0, 2), (1, 2), (4, 3), (5, 6)]
    assert len(pairs.decided) == 4
    # Decided differences: 3 - 1 > 0, 3 - 2 > 0, 1 - 2 < 0, 0 - 0 = 0: (1 + 1 + 0 + 0.5) / 4
    scores = [3.0, 1.0, 2.0, 9.0, -9.0, 0.0, 0.0]
    predicted = probabilities(pairs, scores, reward_std=0.5)
    assert measure_scores(pairs, scores, predicted).accuracy == pytest.approx(2.5 / 4)
    heldout = describe_heldout(pairs, scores, predicted)
    assert [(each.low, each.count) for each in heldout.accuracy_by_margin] == [(0.0, 3), (2.0, 1)]
    assert heldout.chosen_scores == [3.0, 3.0, 1.0, -9.0, 0.0]


def test_probabilities_are_of_the_scores_before_normalisation() -> None:
    # Normalised scores 1 and -1 that were divided by 1.5 were 3 apart: sigmoid(3).
    pairs = HeldoutPairs([1, 1], [Choice(0, 1)])
    assert probabilities(pairs, [1.0, -1.0], reward_std=1.5) == pytest.approx([1 / (1 + math.exp(-3))])


def test_without_a_decided_pair_there_is_no_accuracy() -> None:
    pairs = HeldoutPairs.of(GROUPS[1:2])
    measures = measure_scores(pairs, [1.0, 1.0], [0.5])
    assert (measures.accuracy, measures.accuracy_low, measures.length_correlation) == (None, None, None)
    assert measures.calibration_error == 0.0
    assert describe_ensemble(pairs, [[1.0, 1.0], [2.0, 2.0]]) is None


def test_an_ensemble_by_hand() -> None:
    # Two members, two pairs (0 over 1, 2 over 3). Means: 1, 0 and 1, 1.5; population std: 1, 0 and 0, 0.5.
    pairs = HeldoutPairs([1, 1, 1, 1], [Choice(0, 1), Choice(2, 3)])
    report = describe_ensemble(pairs, [[2.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 2.0]])
    assert report is not None
    # mean: 1 > 0 right, 1 < 1.5 wrong. worst: 0 = 0 half, 1 = 1 half. mean - std: 0 = 0 half, 1 = 1 half.
    assert report.accuracy_by_rule == {"mean": 0.5, "worst": 0.5, "mean_minus_std": 0.5}
    assert report.mean_disagreement == pytest.approx((1 + 0 + 0 + 0.5) / 4)
    # Differences of the members: 2 and 0, std 1, right; 0 and -1, std 0.5, wrong.
    low, high = report.accuracy_by_disagreement
    assert (low.low, low.accuracy, high.low, high.accuracy) == (0.5, 0.0, 1.0, 1.0)
