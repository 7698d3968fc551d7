"""The order in which callers are served: by tokens, oldest first within a caller, and nobody left behind."""

from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.serving.batching.queue import FairQueue, Waiting

LENGTHS = st.integers(min_value=1, max_value=100)


class Item(Waiting):
    """Shown as its caller and number of tokens, such as a30."""

    def __repr__(self) -> str:
        return f"{self.caller}{self.num_tokens}"


def items(caller: str, *lengths: int, group: str = "", arrived: float = 0.0) -> list[Item]:
    return [Item(caller=caller, num_tokens=length, group=group, arrived=arrived) for length in lengths]


def queue_of(*lines: list[Item]) -> FairQueue[Item]:
    queue: FairQueue[Item] = FairQueue()
    for line in lines:
        queue.add(line)
    return queue


def shown(entries: list[Item]) -> str:
    return " ".join(map(repr, entries))


def take(queue: FairQueue[Item], num_tokens: int) -> str:
    entries = queue.window(num_tokens)
    queue.take(entries)
    return shown(entries)


def test_one_caller_is_served_in_the_order_of_arrival():
    queue = queue_of(items("a", 30, 10, 20))
    assert take(queue, 40) == "a30 a10"
    assert take(queue, 40) == "a20"
    assert len(queue) == queue.num_tokens == 0


def test_callers_take_turns_by_tokens_and_not_by_items():
    # a has 40 after one item, b needs four of 10 to catch up: then both stand at 40, and a has waited longer.
    queue = queue_of(items("a", 40, 40), items("b", 10, 10, 10, 10, 10, arrived=1.0))
    assert take(queue, 1000) == "a40 b10 b10 b10 b10 a40 b10"


def test_a_batch_ends_where_the_next_item_does_not_fit():
    queue = queue_of(items("a", 40, 40), items("b", 50, 1, arrived=1.0))
    # 40 + 50 is 90; then a's 40 is next, at 40 against b's 50, and 130 is too much.
    assert take(queue, 100) == "a40 b50"
    assert take(queue, 100) == "a40 b1"


def test_the_first_item_goes_however_long_it_is():
    assert take(queue_of(items("a", 500, 1)), 100) == "a500"


def test_who_was_served_less_goes_first_although_others_came_before():
    queue = queue_of(items("a", 50, 50, 50))
    assert take(queue, 50) == "a50"
    queue.add(items("b", 10, 10, arrived=1.0))
    # The clock is at 50, where a is too: a's next has waited longer, then b is 50 tokens behind.
    assert take(queue, 200) == "a50 b10 b10 a50"


def test_idleness_earns_nothing():
    queue = queue_of(items("a", *[10] * 9), items("b", 10, arrived=1.0))
    assert take(queue, 20) == "a10 b10"
    assert take(queue, 40) == "a10 a10 a10 a10"
    queue.add(items("b", *[10] * 4, arrived=2.0))
    # b was away while a had 40 tokens; it comes back as if it had had them too.
    assert take(queue, 40) == "a10 b10 a10 b10"


def test_a_caller_that_comes_back_still_owes_what_it_had_ahead_of_the_others():
    queue = queue_of(items("a", 100), items("b", *[10] * 20, arrived=1.0))
    assert take(queue, 100) == "a100"
    queue.add(items("a", 100, arrived=2.0))
    # Two waited, so the clock went on by 50 of the 100: b is at 0 and has ten items until it has had 100 too.
    assert take(queue, 100) == " ".join(["b10"] * 10)
    assert take(queue, 110) == "b10 a100"


def test_after_an_empty_queue_all_begin_alike():
    queue = queue_of(items("a", 100))
    assert take(queue, 100) == "a100"
    queue.add(items("a", 10, 10))
    queue.add(items("b", 10, 10, arrived=1.0))
    assert take(queue, 100) == "a10 b10 a10 b10"


def test_a_window_holds_one_group_and_leaves_the_others_in_their_places():
    queue = queue_of(items("a", 1, group="warm") + items("a", 2, group="cold") + items("a", 3, group="warm"))
    assert take(queue, 100) == "a1 a3"
    assert take(queue, 100) == "a2"


def test_what_nobody_waits_for_leaves_without_being_counted_as_served():
    first, second = items("a", 70, 10)
    queue = queue_of([first, second], items("b", 10, arrived=1.0))
    queue.discard([first])
    assert (len(queue), queue.num_tokens) == (2, 20)
    assert take(queue, 100) == "a10 b10"
    queue.discard([first, second])
    assert len(queue) == 0


def test_only_as_many_tokens_of_others_go_before_a_caller_as_it_brings_itself():
    queue = queue_of(items("a", 100, 100), items("b", 30))
    assert queue.tokens_before("c", 10) == 10 + 10
    assert queue.tokens_before("c", 50) == 50 + 30
    # Its own 30 go first; by the time that 20 more have gone, a has had 50.
    assert queue.tokens_before("b", 20) == 30 + 50
    assert queue.tokens_before("a", 10) == 200 + 30


def test_it_knows_whose_items_wait():
    queue = queue_of(items("a", 1), items("b", 1, 1, arrived=1.0))
    assert take(queue, 2) == "a1 b1"
    assert not queue.holds("a")
    assert queue.holds("b")
    assert not queue.holds("c")


@given(
    lines=st.dictionaries(st.sampled_from("abcde"), st.lists(LENGTHS, max_size=30), min_size=1),
    budget=st.integers(min_value=1, max_value=300),
)
def test_every_item_goes_exactly_once_and_no_batch_is_over_the_budget(lines: dict[str, list[int]], budget: int):
    queue = queue_of(*(items(caller, *lengths) for caller, lengths in lines.items()))
    expected = list(queue)
    served: list[Item] = []
    while queue:
        batch = queue.window(budget)
        queue.take(batch)
        assert len(batch) == 1 or sum(item.num_tokens for item in batch) <= budget
        served += batch
    assert sorted(map(id, served)) == sorted(map(id, expected))
    for caller, lengths in lines.items():
        assert [item.num_tokens for item in served if item.caller == caller] == lengths


@given(
    lines=st.dictionaries(st.sampled_from("abcde"), st.lists(LENGTHS, min_size=1, max_size=60), min_size=2),
    budget=st.integers(min_value=1, max_value=300),
)
def test_callers_that_wait_are_never_further_apart_than_one_item(lines: dict[str, list[int]], budget: int):
    queue = queue_of(*(items(caller, *lengths) for caller, lengths in lines.items()))
    served = dict.fromkeys(lines, 0)
    while queue:
        batch = queue.window(budget)
        queue.take(batch)
        for item in batch:
            served[item.caller] += item.num_tokens
        waiting = [served[caller] for caller in lines if queue.holds(caller)]
        assert not waiting or max(waiting) - min(waiting) <= 100


@settings(max_examples=30)
@given(length=LENGTHS, others=st.lists(LENGTHS, min_size=1, max_size=20))
def test_ever_new_callers_do_not_hold_an_old_one_back(length: int, others: list[int]):
    queue = queue_of(items("old", length, length))
    queue.take(queue.window(length))
    newcomer = 0
    # Two newcomers before each batch of one: after as many tokens as old is ahead, for each that waits, it is its turn.
    for _ in range(1000):
        for tokens in (others[newcomer % len(others)], 1):
            queue.add(items(f"new{newcomer}", tokens, arrived=float(newcomer + 1)))
            newcomer += 1
        queue.take(queue.window(1))
        if not queue.holds("old"):
            return
    raise AssertionError("1000 batches went by without it")
