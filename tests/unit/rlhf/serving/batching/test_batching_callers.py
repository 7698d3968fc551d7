"""The batcher between callers: who goes next, who is refused, how long it waits for company, and how it ends."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf.errors import OverloadedError
from rlhf.serving.batching.batcher import Batcher
from tests.support.recorded_batches import Recorder, running


async def submit(batcher: Batcher[int, int], items: list[int], caller: str) -> "asyncio.Task[list[int]]":
    """A call under way, its items in the queue."""
    call = asyncio.create_task(batcher.submit_all(items, caller))
    await asyncio.sleep(0)
    return call


async def hold_back(batcher: Batcher[int, int], recorder: Recorder) -> "asyncio.Task[list[int]]":
    """A first run that lasts until the recorder's gate opens; what comes meanwhile waits."""
    recorder.gate.clear()
    first = await submit(batcher, [1], "first")
    await recorder.wait_until_running()
    return first


async def test_a_batch_is_shared_between_the_callers_that_wait():
    recorder = Recorder()
    async with running(recorder.run, max_batch_tokens=100, pads=False) as batcher:
        calls = [await hold_back(batcher, recorder)]
        calls.append(await submit(batcher, [25] * 8, "greedy"))
        calls.append(await submit(batcher, [24, 26], "modest"))
        recorder.gate.set()
        await asyncio.gather(*calls)
    # In turns of 25 and 24: after 50 and 50 modest is done, and the rest is greedy's.
    assert recorder.batches == [[1], [25, 24, 26, 25], [25] * 4, [25] * 2]


async def test_without_padding_lengths_do_not_matter():
    recorder = Recorder()
    async with running(recorder.run, max_batch_tokens=500, pads=False) as batcher:
        assert await batcher.submit_all([3, 400, 90, 8]) == [30, 4000, 900, 80]
    # 3 + 400 + 90 is 493, and 8 more would be 501. Padded, 400 would have gone alone.
    assert recorder.batches == [[3, 400, 90], [8]]


async def test_with_padding_like_lengths_are_taken_from_the_next_batches():
    recorder = Recorder()
    async with running(recorder.run, max_batch_tokens=1000, pads=True) as batcher:
        calls = [await hold_back(batcher, recorder)]
        calls.append(await submit(batcher, [300, 900, 290, 310], "a"))
        recorder.gate.set()
        await asyncio.gather(*calls)
    # 3 * 310 is 930.
    assert recorder.batches == [[1], [310, 300, 290], [900]]


async def test_one_part_in_eight_of_the_queue_is_kept_for_those_who_have_nothing_in_it():
    recorder = Recorder()
    async with running(recorder.run, max_queue_items=16) as batcher:
        calls = [await hold_back(batcher, recorder)]
        calls.append(await submit(batcher, [1] * 13, "greedy"))
        with pytest.raises(OverloadedError, match="the queue holds 13 of 16 items, no room for 2 more"):
            await batcher.submit_all([1, 1], "greedy")
        calls.append(await submit(batcher, [1], "greedy"))
        calls.append(await submit(batcher, [1, 1], "modest"))
        with pytest.raises(OverloadedError, match="holds 16 of 16"):
            await batcher.submit_all([1], "late")
        recorder.gate.set()
        await asyncio.gather(*calls)


async def test_before_anything_was_measured_a_refusal_says_to_come_again_in_a_second():
    recorder = Recorder()
    async with running(recorder.run, max_queue_items=1) as batcher:
        first = await hold_back(batcher, recorder)
        second = await submit(batcher, [2], "")
        with pytest.raises(OverloadedError, match="repeat in 1 s") as refusal:
            await batcher.submit_all([3])
        assert refusal.value.retry_after_seconds == 1.0
        recorder.gate.set()
        assert await asyncio.gather(first, second) == [[10], [20]]


async def test_what_would_wait_too_long_is_refused_and_told_how_long():
    recorder = Recorder()
    async with running(recorder.run, max_queue_seconds=1e-6) as batcher:
        assert await batcher.submit_all([5]) == [50]  # from here on its pace is known
        first = await hold_back(batcher, recorder)
        second = await submit(batcher, [900], "a")
        with pytest.raises(OverloadedError, match=r"the items would wait about .* s, the limit is 1e-06 s") as refusal:
            await batcher.submit_all([900], "b")
        assert refusal.value.retry_after_seconds is not None
        assert refusal.value.retry_after_seconds >= 0.01
        recorder.gate.set()
        assert await asyncio.gather(first, second) == [[10], [9000]]


async def test_an_idle_thread_waits_for_company():
    recorder = Recorder()
    async with running(recorder.run, batch_wait_seconds=60.0, max_batch_tokens=100) as batcher:
        first = await submit(batcher, [40], "a")
        await asyncio.sleep(0.01)
        assert recorder.batches == []
        # 40 + 60 fill the batch, long before a minute is over.
        second = await submit(batcher, [60], "b")
        assert await asyncio.gather(first, second) == [[400], [600]]


async def test_a_full_batch_does_not_wait():
    recorder = Recorder()
    async with running(recorder.run, batch_wait_seconds=60.0, max_batch_tokens=100) as batcher:
        assert await batcher.submit_all([100]) == [1000]


async def test_without_company_the_first_item_goes_when_its_time_is_over():
    recorder = Recorder()
    async with running(recorder.run, batch_wait_seconds=0.001) as batcher:
        assert await batcher.submit_all([1]) == [10]


async def test_after_a_run_nothing_waits_for_company():
    recorder = Recorder()
    async with running(recorder.run, batch_wait_seconds=60.0, max_batch_tokens=100) as batcher:
        recorder.gate.clear()
        first = await submit(batcher, [100], "a")
        await recorder.wait_until_running()
        second = await submit(batcher, [2], "b")
        recorder.gate.set()
        assert await asyncio.gather(first, second) == [[1000], [20]]


async def test_it_tells_how_long_each_item_of_a_batch_waited():
    waits: list[list[float]] = []
    recorder = Recorder()
    async with running(recorder.run, observe_waits=lambda seconds: waits.append(list(seconds))) as batcher:
        first = await hold_back(batcher, recorder)
        second = await submit(batcher, [2, 3], "")
        await asyncio.sleep(0.01)
        recorder.gate.set()
        await asyncio.gather(first, second)
    assert [len(batch) for batch in waits] == [1, 2]
    assert all(seconds >= 0.009 for seconds in waits[1])


async def test_what_was_never_started_can_be_closed():
    batcher = Batcher(Recorder().run, abs, max_batch_tokens=1, max_queue_items=1)
    await batcher.close()


@settings(max_examples=40, deadline=None)
@given(
    calls=st.lists(
        st.tuples(
            st.sampled_from("abc"),
            st.lists(st.integers(min_value=1, max_value=60), max_size=8),
            st.booleans(),
        ),
        max_size=12,
    ),
    pads=st.booleans(),
)
def test_whoever_stays_gets_each_of_its_items_once_and_no_batch_is_over_the_budget(
    calls: list[tuple[str, list[int], bool]], pads: bool
):
    recorder = Recorder()

    async def call_all() -> None:
        async with running(recorder.run, max_batch_tokens=100, pads=pads) as batcher:
            first = await hold_back(batcher, recorder)
            tasks = [await submit(batcher, items, caller) for caller, items, _ in calls]
            leaving = [task for task, (_, _, leaves) in zip(tasks, calls, strict=True) if leaves]
            for task in leaving:
                task.cancel()
            await asyncio.gather(*leaving, return_exceptions=True)
            recorder.gate.set()
            await first
            for task, (_, items, leaves) in zip(tasks, calls, strict=True):
                if not leaves:
                    assert await task == [10 * item for item in items]

    asyncio.run(call_all())
    ran = sorted(item for batch in recorder.batches[1:] for item in batch)
    assert ran == sorted(item for _, items, leaves in calls if not leaves for item in items)
    for batch in recorder.batches:
        tokens = len(batch) * max(batch) if pads else sum(batch)
        assert len(batch) == 1 or tokens <= 100
