"""What outsiders may know of a run and ask of it, between the loop that trains and the servicer that answers."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from rlhf.errors import PreconditionError

RunState = Literal["starting", "running", "paused", "waiting", "finished", "failed"]


@dataclass(frozen=True, slots=True)
class FinishedStep:
    """A step and its metrics."""

    step: int
    end_time: datetime
    metrics: dict[str, float]


class RunControl:
    """The state of one run. All methods are called in the event loop."""

    def __init__(self, run_name: str, algorithm: str, num_steps: int) -> None:
        self.run_name = run_name
        self.algorithm = algorithm
        self.num_steps = num_steps
        self.step = 0
        """Steps completed."""
        self.policy_version = 0
        self.start_time = datetime.now(UTC)
        self.last_step_time = self.start_time
        """When the last step ended; the start of this process while it has ended none."""
        self.waiting_for: Callable[[], str] = lambda: ""
        """Says which services are away, in words; empty if none is."""
        self._phase: Literal["starting", "running", "finished", "failed"] = "starting"
        self._failure = ""
        self.stopping = False
        """Whether the run was asked to end early."""
        self._paused = False
        self._pausing = False
        self._saves: list[asyncio.Future[tuple[Path, int]]] = []
        self._history: list[FinishedStep] = []
        self._changed = asyncio.Condition()

    @property
    def state(self) -> RunState:
        """What the run is doing."""
        if self._phase in ("finished", "failed"):
            return self._phase
        if self.waiting_for():
            return "waiting"
        return "paused" if self._paused else self._phase

    @property
    def message(self) -> str:
        """What the run waits for, or why it failed; else empty."""
        return self._failure or self.waiting_for()

    @property
    def ended(self) -> bool:
        """Whether the run is over."""
        return self._phase in ("finished", "failed")

    async def pause(self) -> None:
        """Makes the run wait after the step in progress."""
        self._pausing = True
        await self._tell()

    async def resume(self) -> None:
        """Lets a paused run go on."""
        self._pausing = False
        await self._tell()

    async def stop(self) -> None:
        """Ends the run after the step in progress."""
        self.stopping = True
        await self._tell()

    async def save_checkpoint(self) -> tuple[Path, int]:
        """Returns the directory and step of a checkpoint, written after the step in progress.

        Raises: PreconditionError if the run ends before it is.
        """
        if self.ended:
            raise PreconditionError(f"the run is {self.state}; its last checkpoint is in its run directory")
        saved: asyncio.Future[tuple[Path, int]] = asyncio.get_running_loop().create_future()
        self._saves.append(saved)
        await self._tell()
        return await saved

    async def between_steps(self, save: Callable[[], Awaitable[Path]]) -> bool:
        """Does what was asked for in the meantime: saves, waits while paused. Returns False if the run must end."""
        self._phase = "running"
        while True:
            while self._saves:
                path = await save()
                saves, self._saves = self._saves, []
                for saved in saves:
                    if not saved.done():
                        saved.set_result((path, self.step))
            if self.stopping:
                return False
            async with self._changed:
                if not self._saves and not self.stopping:
                    self._paused = self._pausing
                    if not self._paused:
                        return True
                    await self._changed.wait()
                    self._paused = self._pausing

    async def finish_step(self, step: int, policy_version: int, metrics: Mapping[str, float]) -> None:
        """Makes a finished step known to all who watch."""
        self.step, self.policy_version = step, policy_version
        self.last_step_time = datetime.now(UTC)
        self._history.append(FinishedStep(step, self.last_step_time, dict(metrics)))
        await self._tell()

    async def end(self, failure: str = "") -> None:
        """Marks the run as over: finished, or failed for the given reason."""
        self._phase, self._failure = ("failed", failure) if failure else ("finished", "")
        for saved in self._saves:
            if not saved.done():
                saved.set_exception(
                    PreconditionError(f"the run is {self._phase}; no checkpoint was written for this call")
                )
        await self._tell()

    async def watch(self, from_step: int) -> AsyncIterator[FinishedStep]:
        """Yields the steps from a number on: those of the past at once, the others as they end, until the run does."""
        position = 0
        while True:
            while position < len(self._history):
                finished = self._history[position]
                position += 1
                if finished.step >= from_step:
                    yield finished
            async with self._changed:
                if position < len(self._history):
                    continue
                if self.ended:
                    return
                await self._changed.wait()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()
