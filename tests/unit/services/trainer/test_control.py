"""A run's control: pause, resume, save, stop, watch."""

import asyncio
from pathlib import Path

import pytest

from rlhf.errors import PreconditionError
from services.trainer.service.control import RunControl


class Loop:
    """A loop that does nothing but obey."""

    def __init__(self, num_steps: int = 3) -> None:
        self.control = RunControl("run", "ppo", num_steps)
        self.saved_at: list[int] = []
        self.proceed = asyncio.Semaphore(0)

    async def save(self) -> Path:
        self.saved_at.append(self.control.step)
        return Path(f"step-{self.control.step}")

    async def run(self) -> None:
        while self.control.step < self.control.num_steps and await self.control.between_steps(self.save):
            await self.proceed.acquire()
            step = self.control.step + 1
            await self.control.finish_step(step, step + 1, {"reward_mean": step / 2})
        await self.control.end()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_run_counts_its_steps_and_ends() -> None:
    loop = Loop()
    assert loop.control.state == "starting"
    running = asyncio.create_task(loop.run())
    await settle()
    assert loop.control.state == "running"
    for _ in range(3):
        loop.proceed.release()
    await running
    assert (loop.control.state, loop.control.step, loop.control.policy_version) == ("finished", 3, 4)


async def test_a_pause_waits_after_the_step_in_progress_until_resume() -> None:
    loop = Loop()
    running = asyncio.create_task(loop.run())
    await settle()
    await loop.control.pause()
    assert loop.control.state == "running"  # the first step goes on
    for _ in range(3):
        loop.proceed.release()
    await settle()
    assert (loop.control.state, loop.control.step) == ("paused", 1)
    await loop.control.resume()
    await running
    assert loop.control.step == 3


async def test_a_checkpoint_can_be_asked_for_while_running_and_while_paused() -> None:
    loop = Loop()
    running = asyncio.create_task(loop.run())
    await settle()
    asked = asyncio.create_task(loop.control.save_checkpoint())
    await settle()
    assert not asked.done()  # the step in progress comes first
    await loop.control.pause()
    loop.proceed.release()
    assert await asked == (Path("step-1"), 1)
    assert await loop.control.save_checkpoint() == (Path("step-1"), 1)
    assert loop.control.state == "paused"
    await loop.control.stop()
    await running
    assert (loop.control.state, loop.control.step) == ("finished", 1)


async def test_no_checkpoint_is_promised_once_the_run_is_over() -> None:
    loop = Loop(num_steps=1)
    running = asyncio.create_task(loop.run())
    await settle()
    asked = asyncio.create_task(loop.control.save_checkpoint())
    await settle()
    loop.proceed.release()
    await running
    with pytest.raises(PreconditionError, match="the run is finished; no checkpoint was written"):
        await asked
    with pytest.raises(PreconditionError, match="the run is finished"):
        await loop.control.save_checkpoint()


async def test_a_watcher_gets_past_and_future_steps_and_the_end() -> None:
    loop = Loop()
    running = asyncio.create_task(loop.run())
    loop.proceed.release()
    await settle()

    async def watch(from_step: int) -> list[tuple[int, float]]:
        return [(each.step, each.metrics["reward_mean"]) async for each in loop.control.watch(from_step)]

    everything, later = asyncio.create_task(watch(0)), asyncio.create_task(watch(2))
    await settle()
    loop.proceed.release()
    loop.proceed.release()
    await running
    assert await everything == [(1, 0.5), (2, 1.0), (3, 1.5)]
    assert await later == [(2, 1.0), (3, 1.5)]


async def test_waiting_and_failing_are_told_with_their_reason() -> None:
    control = RunControl("run", "ppo", 3)
    control.waiting_for = lambda: "reward service at r:1 is away"
    assert (control.state, control.message) == ("waiting", "reward service at r:1 is away")
    await control.end("step 2: the policy loss is nan")
    assert (control.state, control.message) == ("failed", "step 2: the policy loss is nan")
