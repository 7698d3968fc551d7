"""Repeated calls: computed once, told from others by their content, kept within bounds, ended with the last waiter."""

import asyncio

import pytest

from rlhf.errors import InvalidRequestError
from services.reward import repeated_calls as repeats_module
from services.reward.comparing import ComparisonPair
from services.reward.repeated_calls import CallKey, Repeats, digest_of
from services.reward.scorers.scorer import ChatMessage, Conversation, Item, RawPair, TextPair, TokenPair, TokenSequence
from tests.support.number_scorer import NumberScorer, loaded, text, until

KEY = CallKey("trainer", "call-1")


class Work:
    """Counts how often it is begun, and answers when the gate is open."""

    def __init__(self, answer: str = "answer", fails: bool = False) -> None:
        self.num_begun = 0
        self.was_cancelled = False
        self.gate = asyncio.Event()
        self._answer = answer
        self._fails = fails

    async def __call__(self) -> str:
        self.num_begun += 1
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise
        if self._fails:
            raise ValueError("failed")
        return self._answer


class Counter:
    """What the repeats are counted with."""

    def __init__(self) -> None:
        self.value = 0

    def inc(self) -> None:
        self.value += 1


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def made(num_items: int = 1) -> tuple[Repeats[str], Counter, Clock]:
    counter, clock = Counter(), Clock()
    return Repeats(lambda answer: num_items, counter.inc, clock), counter, clock


async def test_a_repeat_of_a_call_in_flight_waits_for_the_same_work():
    calls, counter, _ = made()
    work = Work()
    both = [asyncio.create_task(calls.share(KEY, b"same", work)) for _ in range(2)]
    await asyncio.sleep(0)
    work.gate.set()
    assert await asyncio.gather(*both) == ["answer", "answer"]
    assert (work.num_begun, counter.value) == (1, 1)


async def test_a_repeat_of_an_answered_call_gets_the_kept_answer():
    calls, counter, _ = made()
    first, second = Work("first"), Work("second")
    first.gate.set()
    assert await calls.share(KEY, b"same", first) == "first"
    assert await calls.share(KEY, b"same", second) == "first"
    assert (second.num_begun, counter.value) == (0, 1)


async def test_ids_belong_to_their_callers():
    calls, counter, _ = made()
    first, second = Work("first"), Work("second")
    first.gate.set()
    second.gate.set()
    assert await calls.share(KEY, b"same", first) == "first"
    assert await calls.share(CallKey("judge", "call-1"), b"other", second) == "second"
    assert counter.value == 0


async def test_an_id_with_other_content_is_refused_in_flight_and_afterwards():
    calls, counter, _ = made()
    work = Work()
    call = asyncio.create_task(calls.share(KEY, b"one", work))
    await asyncio.sleep(0)
    with pytest.raises(InvalidRequestError, match="request_id is 'call-1', which was another call's"):
        await calls.share(KEY, b"two", work)
    work.gate.set()
    assert await call == "answer"
    with pytest.raises(InvalidRequestError, match="give every call an id of its own"):
        await calls.share(KEY, b"two", work)
    assert counter.value == 0


async def test_work_goes_on_while_anyone_waits_and_ends_with_the_last():
    calls, _, _ = made()
    work = Work()
    both = [asyncio.create_task(calls.share(KEY, b"same", work)) for _ in range(2)]
    await asyncio.sleep(0)
    both[0].cancel()
    await asyncio.wait([both[0]])
    await asyncio.sleep(0)
    assert not work.was_cancelled
    both[1].cancel()
    await asyncio.wait([both[1]])
    await asyncio.sleep(0)
    assert work.was_cancelled
    assert calls.num_kept == 0


async def test_the_first_caller_may_leave_and_the_repeat_still_gets_the_answer():
    calls, _, _ = made()
    work = Work()
    both = [asyncio.create_task(calls.share(KEY, b"same", work)) for _ in range(2)]
    await asyncio.sleep(0)
    both[0].cancel()
    await asyncio.wait([both[0]])
    work.gate.set()
    assert await both[1] == "answer"
    assert work.num_begun == 1


async def test_a_repeat_that_comes_as_the_work_is_cancelled_begins_anew():
    calls, _, _ = made()
    left, work = Work("left"), Work("again")
    call = asyncio.create_task(calls.share(KEY, b"same", left))
    await asyncio.sleep(0)
    call.cancel()
    work.gate.set()
    again = asyncio.create_task(calls.share(KEY, b"same", work))
    assert await again == "again"
    assert left.was_cancelled
    assert await calls.share(KEY, b"same", Work()) == "again"  # what was cancelled has not dropped it


async def test_a_failure_reaches_all_that_wait_and_is_not_kept():
    calls, _, _ = made()
    failing, work = Work(fails=True), Work()
    both = [asyncio.create_task(calls.share(KEY, b"same", failing)) for _ in range(2)]
    await asyncio.sleep(0)
    failing.gate.set()
    assert [str(error) for error in await asyncio.gather(*both, return_exceptions=True)] == ["failed", "failed"]
    work.gate.set()
    assert await calls.share(KEY, b"same", work) == "answer"


async def test_answers_are_kept_for_a_time():
    calls, _, clock = made()
    work = Work()
    work.gate.set()
    await calls.share(KEY, b"same", work)
    clock.now = repeats_module.MAX_KEPT_SECONDS - 1
    await calls.share(KEY, b"same", work)
    assert work.num_begun == 1
    clock.now = repeats_module.MAX_KEPT_SECONDS
    await calls.share(KEY, b"same", work)
    assert work.num_begun == 2


async def test_answers_are_kept_within_bounds_of_items_oldest_first():
    # 100,000 items are kept: two answers of 40,000 are, with a third the first goes.
    calls, _, _ = made(num_items=40_000)
    work = Work()
    work.gate.set()
    for index in range(3):
        await calls.share(CallKey("trainer", str(index)), b"same", work)
    assert calls.num_kept == 2
    await calls.share(CallKey("trainer", "1"), b"same", work)
    assert work.num_begun == 3
    await calls.share(CallKey("trainer", "0"), b"same", work)
    assert work.num_begun == 4


async def test_answers_are_kept_within_bounds_of_number():
    calls, _, _ = made()
    work = Work()
    work.gate.set()
    for index in range(repeats_module.MAX_KEPT_ANSWERS + 5):
        await calls.share(CallKey("trainer", str(index)), b"same", work)
    assert calls.num_kept == repeats_module.MAX_KEPT_ANSWERS


async def test_a_repeated_call_is_scored_and_counted_once():
    scorer = NumberScorer()
    async with loaded(scorer) as (core, registry):
        scorer.gate.clear()
        calls = [
            asyncio.create_task(core.score([text("1"), text("2")], caller="trainer", request_id="a")) for _ in range(3)
        ]
        await scorer.wait_until_running()
        scorer.gate.set()
        answers = await asyncio.gather(*calls)
        answers.append(await core.score([text("1"), text("2")], caller="trainer", request_id="a"))
        with pytest.raises(InvalidRequestError, match="request_id is 'a'"):
            await core.score([text("1"), text("3")], caller="trainer", request_id="a")
        await core.score([text("9")], caller="other", request_id="a")
        await core.compare([ComparisonPair(text("5"), text("6"))], caller="trainer", request_id="a")
    assert [answer.outcomes for answer in answers] == [[1.0, 2.0]] * 4
    assert sorted(scorer.scored) == ["1", "2", "5", "6", "9"]
    assert registry.get_sample_value("rlhf_reward_repeated_calls_total") == 3
    assert registry.get_sample_value("rlhf_reward_items_total") == 5


async def test_nothing_stays_in_the_queue_of_a_call_that_everyone_has_left():
    scorer = NumberScorer()
    async with loaded(scorer) as (core, registry):
        scorer.gate.clear()
        running = asyncio.create_task(core.score([text("1")]))
        await scorer.wait_until_running()
        leaving = [asyncio.create_task(core.score([text("2")], request_id="a")) for _ in range(2)]
        await until(lambda: registry.get_sample_value("rlhf_reward_queue_items") == 1)
        for call in leaving:
            call.cancel()
        await asyncio.wait(leaving)
        await until(lambda: registry.get_sample_value("rlhf_reward_queue_items") == 0)
        scorer.gate.set()
        await running
    assert scorer.scored == ["1"]


def test_other_content_has_another_digest():
    user, assistant = ChatMessage("user", "a"), ChatMessage("assistant", "b")
    contents: list[list[Item | ComparisonPair | None]] = [
        [],
        [None],
        [TextPair("a", "b")],
        [TextPair("ab", "")],
        [RawPair("a", "b")],
        [TextPair("a", "b"), None],
        [TextPair("a", "\ud83d")],
        [Conversation((user, assistant))],
        [Conversation((user, user, assistant))],
        [TokenPair([1], [2, 3])],
        [TokenPair([1, 2], [3])],
        [TokenPair([12], [3])],
        [TokenSequence([1, 2, 3])],
        [TokenSequence([1]), TokenSequence([2, 3])],
        [ComparisonPair(TextPair("a", "b"), TextPair("a", "c"))],
        [ComparisonPair(TextPair("a", "b"), TextPair("a", "c"), margin=0.5)],
        [ComparisonPair(TextPair("a", "b"), None)],
        [ComparisonPair(None, TextPair("a", "b"))],
    ]
    assert len({digest_of(content) for content in contents}) == len(contents)
    assert digest_of([TextPair("a", "b")]) == digest_of([TextPair("a", "b")])
