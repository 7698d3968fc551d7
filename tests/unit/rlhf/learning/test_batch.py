"""Samples as tensors."""

import pytest
import torch

from rlhf.learning.batch import collate, micro_batches
from rlhf.learning.sample import Sample
from rlhf.rollout import Rollout


def make_sample(
    prompt_ids: list[int], completion_ids: list[int], reward: float, group_id: str = "0", *, stopped: bool = True
) -> Sample:
    rollout = Rollout(
        rollout_id=f"{group_id}/0",
        group_id=group_id,
        prompt_ids=prompt_ids,
        completion_ids=completion_ids,
        logprobs=[-0.1 * token for token in completion_ids],
        policy_versions=[1] * len(completion_ids),
        finish_reason="stop" if stopped else "length",
    )
    return Sample(rollout=rollout, rewards={"reward": reward}, ref_logprobs=[-0.2 * token for token in completion_ids])


SAMPLES = [make_sample([5], [1, 2, 3], 1.5), make_sample([6, 7], [4], -2.0), make_sample([8, 9, 10], [1, 2], 0.0)]


def test_per_token_tensors_cover_the_completions_alone() -> None:
    batch = collate(SAMPLES)
    assert batch.sequences.input_ids.tolist() == [[5, 1, 2, 3, 0], [6, 7, 4, 0, 0], [8, 9, 10, 1, 2]]
    assert batch.completion_mask.tolist() == [[True, True, True], [True, False, False], [True, True, False]]
    torch.testing.assert_close(
        batch.sampler_logprobs, torch.tensor([[-0.1, -0.2, -0.3], [-0.4, 0.0, 0.0], [-0.1, -0.2, 0.0]])
    )
    torch.testing.assert_close(
        batch.ref_logprobs, torch.tensor([[-0.2, -0.4, -0.6], [-0.8, 0.0, 0.0], [-0.2, -0.4, 0.0]])
    )
    assert batch.rewards.tolist() == [1.5, -2.0, 0.0]
    assert (batch.size, batch.num_completion_tokens, batch.lengths) == (3, 6, [4, 3, 5])


def test_groups_are_numbered_as_they_appear_and_cut_completions_are_marked() -> None:
    groups = ("7", "12", "7", "3")
    batch = collate([make_sample([1], [2], 0.0, group, stopped=group == "7") for group in groups])
    assert (batch.group_ids.tolist(), batch.group_ids.dtype) == ([0, 1, 0, 2], torch.int64)
    assert batch.stopped.tolist() == [True, False, True, False]


def test_micro_batches_hold_as_many_tokens_as_they_may() -> None:
    batch = collate(SAMPLES)
    # Lengths 4, 3, 5, longest first: 5 opens a micro-batch, 4 does not fit with it into 8, 3 does.
    first, second = micro_batches(batch, [[0], [1], [2]], max_tokens=8)
    assert (first.rows.tolist(), second.rows.tolist()) == ([2, 1], [0])
    assert first.sequences.input_ids.tolist() == [[8, 9, 10, 1, 2], [6, 7, 4, 0, 0]]
    assert first.take(batch.ref_logprobs).shape == (2, 2)


def test_rows_of_a_unit_stay_together() -> None:
    batch = collate(SAMPLES)
    first, second = micro_batches(batch, [[0, 2], [1]], max_tokens=8)  # 9 tokens go alone, 3 follow
    assert (first.rows.tolist(), second.rows.tolist()) == ([0, 2], [1])


def test_only_the_rows_asked_for_are_split() -> None:
    batch = collate(SAMPLES)
    (micro,) = micro_batches(batch, [[2], [1]], max_tokens=100)
    assert micro.rows.tolist() == [2, 1]


def test_what_is_put_comes_back_and_leaves_other_rows_alone() -> None:
    batch = collate(SAMPLES)
    target = torch.full((3, 3), 9.0)
    (micro,) = micro_batches(batch, [[1], [2]], max_tokens=100)
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    micro.put(values, target)  # rows are 2 (length 5), then 1 (length 3); two columns
    assert target.tolist() == [[9.0, 9.0, 9.0], [3.0, 4.0, 9.0], [1.0, 2.0, 9.0]]
    assert torch.equal(micro.take(target), values)


def test_no_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        collate([])
