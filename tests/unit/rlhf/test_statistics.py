"""The statistics that rooms share: by hand, and against a plain loop."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.statistics import (
    clustered_mean,
    distinct_2,
    mean_ranks,
    pearson,
    repeated_ngrams,
    repetition_of,
    sigmoid,
    spearman,
)


def test_the_interval_of_single_samples_is_the_textbook_one() -> None:
    # mean 2, sample variance 1, three draws: 1.96 * sqrt(1 / 3)
    result = clustered_mean([1.0, 2.0, 3.0], [0, 1, 2])
    assert result.mean == 2.0
    assert result.half_width == pytest.approx(1.96 * math.sqrt(1 / 3), rel=1e-4)


def test_copies_of_a_prompt_do_not_narrow_the_interval() -> None:
    once = clustered_mean([1.0, 2.0, 3.0], [0, 1, 2])
    thrice = clustered_mean([1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 3.0, 3.0, 3.0], [0, 0, 0, 1, 1, 1, 2, 2, 2])
    assert thrice.half_width == pytest.approx(once.half_width)
    assert thrice.count == 9


def test_one_prompt_gives_no_interval() -> None:
    assert clustered_mean([1.0, 3.0], [0, 0]).half_width is None


def test_correlations_by_hand() -> None:
    assert pearson([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]) == pytest.approx(1.0)
    assert pearson([1.0, 2.0], [3.0, 3.0]) is None
    assert pearson([], []) is None
    assert mean_ranks([30.0, 10.0, 30.0, 20.0]) == [3.5, 1.0, 3.5, 2.0]
    # Monotone but not linear: the ranks agree wholly, the values do not.
    assert spearman([1.0, 2.0, 3.0], [1.0, 10.0, 1000.0]) == pytest.approx(1.0)
    assert pearson([1.0, 2.0, 3.0], [1.0, 10.0, 1000.0]) < 0.9


def test_sigmoid_does_not_overflow() -> None:
    assert [sigmoid(x) for x in (-2000, -800, 0, 800, 2000)] == [0.0, 0.0, 0.5, 1.0, 1.0]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("a b c", 1.0), ("a b a b a", 0.5), ("word", None), ("", None)],  # ab ba ab ba: 2 of 4 differ
)
def test_distinct_2_is_the_share_of_different_word_pairs(text: str, expected: float | None) -> None:
    assert distinct_2(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b c d e", 0.0),
        ("a b c d a b c d", 0.2),  # abcd bcda cdab dabc abcd: the last of 5 stood there before
        ("no no no no no no no", 0.75),  # 4 equal ones
        ("a b c", None),
    ],
)
def test_repetition_is_the_share_of_four_word_sequences_that_stood_there_before(
    text: str, expected: float | None
) -> None:
    assert repeated_ngrams(text) == (None if expected is None else pytest.approx(expected))


def test_a_sequence_that_begins_anew_repeats_the_n_grams_it_had() -> None:
    # abc bca cab abc: four trigrams, the last of which stands earlier.
    assert repetition_of(["a", "b", "c", "a", "b", "c"]) == 1 / 4
    # aaa three times: two of three stand earlier.
    assert repetition_of([7, 7, 7, 7, 7]) == pytest.approx(2 / 3)
    assert repetition_of(["all", "of", "these", "differ"]) == 0.0


def test_what_is_shorter_than_an_n_gram_has_no_repetition() -> None:
    assert repetition_of(["two", "words"]) is None
    assert repetition_of([]) is None
    assert repetition_of([1, 1, 1]) == 0.0  # one trigram, which nothing precedes


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), max_size=60))
def test_repetition_is_what_looking_back_from_each_n_gram_finds(ids: list[int]) -> None:
    ngrams = [tuple(ids[first : first + 3]) for first in range(len(ids) - 2)]
    repeated = sum(ngram in ngrams[:place] for place, ngram in enumerate(ngrams))
    assert repetition_of(ids) == (pytest.approx(repeated / len(ngrams)) if ngrams else None)
