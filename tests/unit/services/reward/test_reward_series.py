"""The numbers of the watch: by hand, and against numpy."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.reward.watch.series import Bins, quantiles_of, stability_index, std_of

rewards = st.floats(-1e3, 1e3, allow_nan=False, width=32)


def test_quantiles_lie_between_neighbours() -> None:
    # Places 0.4, 2 and 3.6 of the values 0, 10, 20, 30, 40.
    assert quantiles_of([40, 0, 30, 10, 20], (0.1, 0.5, 0.9)) == pytest.approx([4, 20, 36])
    assert quantiles_of([3.0], (0.1, 0.5, 0.9)) == [3.0, 3.0, 3.0]


def test_standard_deviation_divides_by_the_number_of_values() -> None:
    assert std_of([1.0, 3.0]) == 1.0


def test_equal_counts_have_no_drift() -> None:
    assert stability_index([5, 5, 0], [5, 5, 0]) == 0.0


def test_all_values_in_another_bin() -> None:
    # A half added to each: shares 3/4, 1/4 and 1/4, 3/4. (1/4 - 3/4) ln(1/3) + (3/4 - 1/4) ln 3 = ln 3.
    assert stability_index([1, 0], [0, 1]) == pytest.approx(math.log(3))


def test_an_empty_bin_is_no_infinity() -> None:
    # Shares (9 + 1/2)/11, (1 + 1/2)/11 and (10 + 1/2)/11, (1/2)/11.
    expected = (1 / 11) * math.log(10.5 / 9.5) - (1 / 11) * math.log(0.5 / 1.5)
    assert stability_index([9, 1], [10, 0]) == pytest.approx(expected)


def test_many_values_are_parted_at_the_deciles() -> None:
    bins = Bins.of([float(value) for value in range(101)])
    assert bins.edges == pytest.approx((10, 20, 30, 40, 50, 60, 70, 80, 90))
    assert bins.counts == (11, 10, 10, 10, 10, 10, 10, 10, 10, 10)  # 0 to 10 are eleven
    assert bins.count([-5.0, 10.0, 10.5, 1000.0]) == (2, 1, 0, 0, 0, 0, 0, 0, 0, 1)


def test_rewards_of_0_and_1_have_a_bin_each_and_one_for_what_never_came() -> None:
    bins = Bins.of([0.0, 1.0, 1.0, 1.0])
    assert bins.edges == (0.0, 1.0)
    assert bins.counts == (0, 1, 0, 3, 0)
    assert bins.count([-1.0, 0.0, 0.5, 1.0, 2.0]) == (1, 1, 1, 1, 1)


def test_a_constant_reward_that_changes_either_way_has_drifted() -> None:
    bins = Bins.of([1.0] * 100)
    assert bins.drift_of([1.0] * 100) == 0.0
    # Of three bins one is left for another: shares 100.5/101.5 and 0.5/101.5 change places.
    expected = 2 * (100 / 101.5) * math.log(100.5 / 0.5)
    assert bins.drift_of([2.0] * 100) == pytest.approx(expected)
    assert bins.drift_of([0.0] * 100) == pytest.approx(expected)


def test_a_normal_distribution_that_moves_by_one_standard_deviation_has_a_drift_of_nearly_one() -> None:
    rng = np.random.default_rng(0)
    bins = Bins.of(rng.normal(size=5000).tolist())
    assert bins.drift_of(rng.normal(size=5000).tolist()) < 0.02
    assert 0.85 < bins.drift_of((rng.normal(size=5000) + 1).tolist()) < 1.0
    assert 0.2 < bins.drift_of((rng.normal(size=5000) + 0.5).tolist()) < 0.25


@settings(deadline=None)
@given(st.lists(rewards, min_size=1, max_size=200))
def test_deviation_and_quantiles_are_numpys(values: list[float]) -> None:
    assert std_of(values) == pytest.approx(np.std(values), abs=1e-6)
    shares = (0.0, 0.1, 0.37, 0.5, 0.9, 1.0)
    assert quantiles_of(values, shares) == pytest.approx(np.quantile(values, shares).tolist(), abs=1e-9)


@settings(deadline=None)
@given(st.lists(rewards, min_size=1, max_size=200), st.lists(rewards, min_size=1, max_size=200))
def test_each_value_is_in_one_bin_and_drift_is_what_a_plain_loop_finds(first: list[float], newest: list[float]) -> None:
    bins = Bins.of(first)
    assert sum(bins.counts) == len(first)
    assert sum(bins.count(newest)) == len(newest)
    drift = 0.0
    for before, after in zip(bins.counts, bins.count(newest), strict=True):
        p = (before + 0.5) / (len(first) + 0.5 * len(bins.counts))
        q = (after + 0.5) / (len(newest) + 0.5 * len(bins.counts))
        drift += (q - p) * math.log(q / p)
    assert bins.drift_of(newest) == pytest.approx(drift, abs=1e-9)
    assert bins.drift_of(newest) >= -1e-12
