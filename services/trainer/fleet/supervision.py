"""Supervises the replicas of a fleet: finds them, watches their health, and brings each to the weights that are pushed.

    health --silent--> away, its calls are given up        health --refused, not serving--> away
      |
    GetModel --another tokenizer--> set aside              serves what is wanted --> ready
      |
    push: a patch if it has what the patch applies to, else all weights --refused, late, other weights--> set aside

A replica is asked each time what it serves: it may have been started anew. One that is set aside is tried again when
there are other weights to serve, or after it was away.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from rlhf.client.rpc_errors import SilentError
from rlhf.errors import ConfigError, NotReadyError, OverloadedError, RunError, ServiceError
from rlhf.learning.snapshot import WeightsSnapshot
from services.trainer.fleet.discovery import Discovery
from services.trainer.fleet.push import Goal, push_to_replica, require_tokenizer
from services.trainer.fleet.replica import Replica

ABSENT_SECONDS = 1.0
"""Between two looks at a replica that is away, at most."""
FOLLOW_SECONDS = (0.05, 0.5)
"""Between two looks of another rank at a replica that the main one has to bring current: at first, and at most."""
HOLD_OFF_SECONDS = (0.25, 8.0)
"""How long a replica whose calls fail is left alone: after the first failure, and at most."""


class Supervisor:
    """Looks after one replica until it is told to leave it."""

    def __init__(self, replica: Replica, goal: Goal) -> None:
        self.replica = replica
        self.has_looked = False
        """Whether its first look is over."""
        self.is_held = False
        """Whether the replica gets its weights by relay just now."""
        self._goal = goal
        self._news = asyncio.Event()
        self._leaving = False
        self._not_before = 0.0
        self._follow_seconds = FOLLOW_SECONDS[0]
        self._refused: WeightsSnapshot | None = None
        """What it was set aside over; None before anything was pushed."""

    async def run(self) -> None:
        """Looks, and looks again; returns once the replica is left and has no call to end. Closes its channel."""
        try:
            while not (self._leaving and self._is_done_with()):
                self._news.clear()
                seconds = await self._look()
                self.has_looked = True
                self.replica.touch()
                with suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await self._news.wait()
        finally:
            self.replica.lost.set()
            if self._leaving:
                self._goal.metrics.forget(self.replica.target)  # a push may have ended after it left
            await self.replica.client.close()

    def wake(self) -> None:
        """Has it look now: something has changed."""
        self._follow_seconds = FOLLOW_SECONDS[0]
        self._news.set()

    def hold_off(self) -> None:
        """Leaves the replica alone for a while, longer with each failed call."""
        first, longest = HOLD_OFF_SECONDS
        self._not_before = time.monotonic() + min(first * 2 ** (self.replica.failures - 1), longest)
        self.wake()

    def leave(self) -> None:
        """Gives the replica no more weights; its calls may end."""
        self._leaving = True
        self.wake()

    def _is_done_with(self) -> bool:
        return self.replica.outstanding <= 0 or self.replica.lost.is_set()

    async def _look(self) -> float:
        """Finds out how the replica is, and does what is needed; returns the seconds until the next look."""
        if (wait := self._not_before - time.monotonic()) > 0:
            return wait
        replica, move = self.replica, self._goal.move
        probe_seconds = self._goal.config.replica_probe_seconds
        try:
            await replica.client.check_health(self._goal.config.replica_hang_seconds)
            if self._leaving or self.is_held or (replica.state == "set_aside" and self._refused is self._goal.snapshot):
                return probe_seconds
            return await self._bring_current()
        except SilentError as silence:
            replica.lost.set()
            self._take_away(silence)
        except (NotReadyError, OverloadedError) as absence:
            self._take_away(absence)
        except (ServiceError, ConfigError, RunError) as fault:
            self._refused = self._goal.snapshot
            move(replica, "set_aside", str(fault), fault)
            return probe_seconds
        return min(ABSENT_SECONDS, probe_seconds)

    def _take_away(self, error: ServiceError) -> None:
        self.replica.served = None
        if self._leaving:
            self.replica.lost.set()
        self._goal.move(self.replica, "away", str(error), None)

    async def _bring_current(self) -> float:
        """Brings a replica that can serve to what is pushed."""
        replica, goal = self.replica, self._goal
        model = await replica.client.get_model(goal.config.replica_hang_seconds)
        require_tokenizer(replica.name, model.tokenizer_digest, goal.tokenizer_digest)
        if self._news.is_set():
            return 0.0  # what it answered may be out of date
        replica.model = model
        replica.served = (model.policy_version, model.weights_digest)
        snapshot = goal.snapshot
        if snapshot is None or replica.served == goal.served:
            if replica.state != "ready":
                goal.move(replica, "ready", "", None)
            return goal.config.replica_probe_seconds
        reason = f"{replica.name} serves version {model.policy_version}"
        if not goal.pushes:
            wanted = f"the main rank has not brought it to version {snapshot.policy_version}"
            goal.move(replica, "joining", f"{reason}, and {wanted}", None)
            self._follow_seconds = min(2 * self._follow_seconds, FOLLOW_SECONDS[1])
            return self._follow_seconds
        goal.move(replica, "joining", f"{reason}, and is being brought to {snapshot.policy_version}", None)
        await push_to_replica(replica, snapshot, goal)
        if replica.served == goal.served and not self._news.is_set():
            goal.move(replica, "ready", "", None)
            return goal.config.replica_probe_seconds
        return 0.0


class Membership:
    """Keeps the replicas of a fleet those that are found."""

    def __init__(
        self,
        replicas: dict[str, Replica],
        goal: Goal,
        discovery: Discovery,
        *,
        caller: str,
        on_change: Callable[[], None],
        on_leave: Callable[[Replica], None],
    ) -> None:
        """Finds nobody before begin().

        Args:
            replicas: by target, filled here. goal: of their supervisors. discovery: says who they are.
            caller: the name under which they know these calls.
            on_change, on_leave: told when anything changes, and when a replica is no longer of the fleet.
        """
        self.supervisors: dict[str, Supervisor] = {}
        """By target."""
        self._replicas = replicas
        self._goal = goal
        self._discovery = discovery
        self._caller = caller
        self._on_change = on_change
        self._on_leave = on_leave
        self._is_found = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None

    @property
    def have_looked(self) -> bool:
        """Whether it is known who the replicas are, and every one was looked at."""
        return self._is_found and all(supervisor.has_looked for supervisor in self.supervisors.values())

    def begin(self) -> None:
        """Begins to find them, unless it has."""
        if not self._tasks:
            self._run(self._follow())

    def require_alive(self) -> None:
        """Raises what ended a task that should not have ended, such as a ConfigError of the discovery."""
        if self._failure is not None:
            raise self._failure

    async def close(self) -> None:
        """Ends all supervisors, and closes all channels."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self) -> None:
        async for targets in self._discovery.watch():
            self._is_found = True
            self._update(targets)

    def _update(self, targets: frozenset[str]) -> None:
        """Takes in replicas that are new, and leaves those that are gone."""
        for target in sorted(self._replicas.keys() - targets):
            replica = self._replicas.pop(target)
            self.supervisors.pop(target).leave()
            self._on_leave(replica)
            self._goal.metrics.forget(target)
            replica.become("away", f"{replica.name} is no longer of the fleet")
        for target in sorted(targets - self._replicas.keys()):
            replica = Replica(target, caller=self._caller, on_change=self._on_change)
            supervisor = Supervisor(replica, self._goal)
            self._replicas[target], self.supervisors[target] = replica, supervisor
            self._run(supervisor.run())
        self._goal.metrics.show(self._replicas.values())
        self._on_change()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs a task; if it fails, whoever waits for a change is told."""

        def ended(task: asyncio.Task[None]) -> None:
            self._tasks.discard(task)
            if not task.cancelled() and (failure := task.exception()) is not None:
                self._failure = failure
                self._on_change()

        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(ended)
