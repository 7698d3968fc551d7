"""The batcher: order, budget, bounds, failures, and callers that leave."""

import asyncio
import time

import pytest

from rlhf.errors import InternalError, NotReadyError, OverloadedError
from tests.support.recorded_batches import Recorder, running


async def test_results_come_back_in_the_order_of_the_items():
    recorder = Recorder()
    async with running(recorder.run) as batcher:
        assert await batcher.submit_all([3, 500, 1, 499]) == [30, 5000, 10, 4990]
    # 2 * 500 is the whole budget, so 500 and 499 share a batch; 3 and 1 would be padding in it.
    assert recorder.batches == [[3, 1], [500, 499]]


async def test_no_items_need_no_run():
    recorder = Recorder()
    async with running(recorder.run) as batcher:
        assert await batcher.submit_all([]) == []
    assert recorder.batches == []


async def test_callers_that_wait_share_a_batch_and_each_gets_its_own():
    recorder = Recorder()
    async with running(recorder.run) as batcher:
        recorder.gate.clear()
        first = asyncio.create_task(batcher.submit_all([1]))
        await recorder.wait_until_running()
        others = [asyncio.create_task(batcher.submit_all([i])) for i in (2, 3, 4)]
        await asyncio.sleep(0)
        recorder.gate.set()
        assert await asyncio.gather(first, *others) == [[10], [20], [30], [40]]
    assert recorder.batches == [[1], [4, 3, 2]]


async def test_items_of_different_groups_never_share_a_run():
    recorder = Recorder()
    async with running(recorder.run, group_of=lambda item: item % 2) as batcher:
        assert await batcher.submit_all([1, 2, 3, 4]) == [10, 20, 30, 40]
    assert recorder.batches == [[3, 1], [4, 2]]


async def test_the_oldest_item_goes_next_however_short_it_is():
    recorder = Recorder()
    async with running(recorder.run) as batcher:
        recorder.gate.clear()
        calls = [asyncio.create_task(batcher.submit_all([1]))]
        await recorder.wait_until_running()
        for item in (2, 900, 901, 902):
            calls.append(asyncio.create_task(batcher.submit_all([item])))
            await asyncio.sleep(0)
        recorder.gate.set()
        await asyncio.gather(*calls)
    assert recorder.batches == [[1], [2], [900], [901], [902]]


async def test_a_full_queue_refuses_at_once_and_says_so():
    recorder = Recorder()
    async with running(recorder.run, max_queue_items=2) as batcher:
        recorder.gate.clear()
        first = asyncio.create_task(batcher.submit_all([1]))
        await recorder.wait_until_running()
        waiting = asyncio.create_task(batcher.submit_all([2, 3]))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError, match="the queue holds 2 of 2 items, no room for 1 more"):
            await batcher.submit_all([4])
        recorder.gate.set()
        assert await first == [10]
        assert await waiting == [20, 30]


async def test_items_whose_caller_left_are_not_run_and_free_their_place():
    recorder = Recorder()
    async with running(recorder.run, max_queue_items=2) as batcher:
        recorder.gate.clear()
        first = asyncio.create_task(batcher.submit_all([1]))
        await recorder.wait_until_running()
        leaving = asyncio.create_task(batcher.submit_all([2, 3]))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.wait([leaving])
        staying = asyncio.create_task(batcher.submit_all([4, 5]))
        await asyncio.sleep(0)
        recorder.gate.set()
        assert await first == [10]
        assert await staying == [40, 50]
    assert recorder.batches == [[1], [5, 4]]


async def test_a_caller_that_leaves_during_its_run_disturbs_nobody():
    recorder = Recorder()
    async with running(recorder.run) as batcher:
        recorder.gate.clear()
        first = asyncio.create_task(batcher.submit_all([1]))
        await recorder.wait_until_running()
        first.cancel()
        second = asyncio.create_task(batcher.submit_all([2]))
        await asyncio.sleep(0)
        recorder.gate.set()
        assert await second == [20]


async def test_a_failed_run_reaches_its_callers_and_the_worker_goes_on():
    recorder = Recorder()
    async with running(recorder.run) as batcher:
        with pytest.raises(ValueError, match="item -1 cannot be run"):
            await batcher.submit_all([-1, 2])
        assert await batcher.submit_all([2]) == [20]


async def test_a_failure_in_one_batch_drops_the_rest_of_its_call():
    recorder = Recorder()
    async with running(recorder.run, group_of=lambda item: item) as batcher:
        with pytest.raises(ValueError, match="item -1"):
            await batcher.submit_all([-1, 2, 3])
        assert await batcher.submit_all([4]) == [40]
    assert [3] not in recorder.batches  # 2 may have begun before the call heard of the failure


async def test_a_run_with_the_wrong_number_of_results_is_an_error():
    async with running(lambda items: items[1:]) as batcher:
        with pytest.raises(InternalError, match="1 results for 2 items"):
            await batcher.submit_all([1, 2])


async def test_the_event_loop_stays_free_while_a_batch_runs():
    recorder = Recorder()
    async with running(recorder.run) as batcher:
        recorder.gate.clear()
        call = asyncio.create_task(batcher.submit_all([1]))
        await recorder.wait_until_running()
        begin = time.monotonic()
        await asyncio.sleep(0.02)
        assert time.monotonic() - begin < 1
        assert batcher.busy_seconds >= 0.01
        recorder.gate.set()
        await call
        assert batcher.busy_seconds == 0


async def test_closing_answers_those_that_wait_and_those_that_run():
    recorder = Recorder()
    async with running(recorder.run) as batcher:
        recorder.gate.clear()
        first = asyncio.create_task(batcher.submit_all([1]))
        await recorder.wait_until_running()
        second = asyncio.create_task(batcher.submit_all([2]))
        await asyncio.sleep(0)
        await batcher.close()
        recorder.gate.set()
        for call in (first, second):
            with pytest.raises(NotReadyError, match="shutting down"):
                await call
        with pytest.raises(NotReadyError, match="not running"):
            await batcher.submit_all([3])
