import asyncio

import pytest

from rlhf.errors import FatalError, NotReadyError
from services.policy.vllm.liveness import Liveness


class FakeProcess:
    """An engine's process: it may die, and it answers probes while its gate is open."""

    def __init__(self) -> None:
        self.died_of: str | None = None
        self.answers = asyncio.Event()
        self.answers.set()


@pytest.fixture
async def process():
    return FakeProcess()


@pytest.fixture
async def liveness(process):
    liveness = Liveness(
        death=lambda: process.died_of,
        probe=process.answers.wait,
        probe_seconds=0.005,
        probe_timeout_seconds=0.01,
        max_missed_probes=2,
    )
    liveness.start()
    yield liveness
    await liveness.close()


async def for_ever() -> None:
    await asyncio.Event().wait()


async def seven() -> int:
    return 7


async def test_a_healthy_engine_answers_and_checks_out(liveness):
    assert await liveness.call(seven, timeout=1, what="a count") == 7
    assert await liveness.sample(seven) == 7
    liveness.check()


async def test_death_ends_every_wait_and_every_later_call_at_once(liveness, process):
    waits = [
        asyncio.create_task(liveness.sample(for_ever)),
        asyncio.create_task(liveness.call(for_ever, timeout=60, what="a swap")),
    ]
    await asyncio.sleep(0)
    process.died_of = "the engine process died"
    for wait in waits:
        with pytest.raises(FatalError, match=r"the engine process died\. This process exits with code 1"):
            await asyncio.wait_for(wait, 1)
    with pytest.raises(FatalError):
        await liveness.sample(seven)
    with pytest.raises(FatalError):
        liveness.check()


async def test_a_call_that_takes_too_long_says_what_it_was(liveness):
    with pytest.raises(NotReadyError, match=r"did not finish the pause within 0\.02 s"):
        await liveness.call(for_ever, timeout=0.02, what="the pause")
    liveness.check()


async def test_a_stuck_engine_fails_requests_until_it_answers_again(liveness, process):
    sample = asyncio.create_task(liveness.sample(for_ever))
    process.answers.clear()
    with pytest.raises(NotReadyError, match="has not answered 2 probes"):
        await asyncio.wait_for(sample, 1)
    with pytest.raises(NotReadyError):
        liveness.check()
    process.answers.set()
    await asyncio.sleep(0.1)
    liveness.check()
    assert await liveness.sample(seven) == 7


async def test_no_probe_is_missed_while_probes_are_off(liveness, process):
    with liveness.without_probes():
        await asyncio.sleep(0.01)  # one that was under way has its answer
        process.answers.clear()
        await asyncio.sleep(0.1)
        liveness.check()
        process.answers.set()


async def test_cancelling_a_wait_cancels_the_call_behind_it(liveness):
    cancelled = asyncio.Event()

    async def work() -> None:
        try:
            await for_ever()
        finally:
            cancelled.set()

    wait = asyncio.create_task(liveness.sample(work))
    await asyncio.sleep(0.01)
    wait.cancel()
    await asyncio.wait_for(cancelled.wait(), 1)
