"""Which items share a forward pass."""

from rlhf.serving.batching.queue import batch_of_first, plan_batches


def test_plan_keeps_the_padded_size_within_the_budget_and_gives_a_longer_item_its_own_batch():
    # 700 > 500 goes alone; 200 + 190 is 400 padded, a third would make 600; 180 + 170 is 360.
    assert plan_batches([170, 200, 700, 180, 190], 500) == [[2], [1, 4], [3, 0]]


def test_plan_does_not_pad_a_short_item_to_a_long_one():
    # One batch of 400 + 100 would be 300 of 800 padding, 37 %: more than the 15 % that are allowed.
    assert plan_batches([400, 100], 10_000) == [[0], [1]]


def test_plan_prefers_a_little_padding_to_another_pass():
    # 3 * 30 = 90 padded, 48 of it padding: over half, but below what a pass costs.
    assert plan_batches([30, 10, 2], 10_000) == [[0, 1, 2]]


def test_plan_holds_every_item_once():
    lengths = [(7 * i) % 251 + 1 for i in range(300)]
    batches = plan_batches(lengths, 2048)
    assert sorted(index for batch in batches for index in batch) == list(range(300))
    assert all(len(batch) * max(lengths[i] for i in batch) <= 2048 for batch in batches)


def test_plan_of_nothing_is_nothing():
    assert plan_batches([], 100) == []


def test_the_batch_of_the_first_item_is_the_one_it_is_planned_into():
    # 30 and 28 share a batch of 60; 400 has its own.
    assert batch_of_first([30, 400, 28], 10_000) == [0, 2]
    assert batch_of_first([400, 30, 28], 10_000) == [0]
