"""Padding, the completion mask, and grouping by size."""

import pytest
import torch

from rlhf.models.sequences import pad_sequences, split_by_tokens


def test_rows_are_prompt_completion_padding():
    sequences = pad_sequences([[5, 6, 7], [8]], [[9], [10, 11]], pad_id=3)
    assert sequences.input_ids.tolist() == [[5, 6, 7, 9], [8, 10, 11, 3]]
    assert sequences.prompt_lengths.tolist() == [3, 1]
    assert sequences.completion_lengths.tolist() == [1, 2]
    assert sequences.completion_mask.tolist() == [[True, False], [True, True]]


def test_moving_keeps_the_values():
    sequences = pad_sequences([[5, 6]], [[7]])
    moved = sequences.to("cpu")
    assert torch.equal(moved.input_ids, sequences.input_ids)
    assert torch.equal(moved.completion_mask, sequences.completion_mask)


@pytest.mark.parametrize(
    ("prompts", "completions", "message"),
    [
        ([], [], "0 prompts and 0 completions"),
        ([[1]], [[1], [2]], "1 prompts and 2 completions"),
        ([[1], []], [[1], [2]], r"prompts\[1\] is empty"),
        ([[1]], [[]], r"completions\[0\] is empty"),
    ],
)
def test_what_cannot_be_padded_is_named(prompts: list[list[int]], completions: list[list[int]], message: str):
    with pytest.raises(ValueError, match=message):
        pad_sequences(prompts, completions)


def test_groups_are_the_fullest_that_still_have_room():
    # Longest first: 6; 5 finds no room beside it; 4 fits both and goes where less is left (6 + 4 = 10, none left); the
    # 3 goes to the 5 (2 left), the 2 as well.
    assert split_by_tokens([4, 6, 2, 5, 3], max_tokens=10) == [[1, 0], [3, 4, 2]]


def test_the_groups_of_equal_lengths_are_in_their_order():
    assert split_by_tokens([3, 3, 3, 3], max_tokens=6) == [[0, 1], [2, 3]]


def test_a_sequence_over_the_limit_goes_alone():
    assert split_by_tokens([3, 100, 3], max_tokens=6) == [[1], [0, 2]]


def test_every_index_comes_once_and_no_group_is_too_large():
    lengths = [(7 * i) % 31 + 1 for i in range(50)]
    groups = split_by_tokens(lengths, max_tokens=64)
    assert sorted(index for group in groups for index in group) == list(range(50))
    assert all(sum(lengths[index] for index in group) <= 64 for group in groups)
    # Best-fit decreasing needs at most 11/9 of the fewest groups possible, and one more.
    assert len(groups) <= 11 / 9 * -(-sum(lengths) // 64) + 1


def test_nothing_gives_no_groups():
    assert split_by_tokens([], max_tokens=8) == []


def test_a_limit_below_one_is_refused():
    with pytest.raises(ValueError, match="max_tokens is 0"):
        split_by_tokens([1], max_tokens=0)
