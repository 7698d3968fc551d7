"""Who the replicas are: each has a keeper, from when it is found until it has left."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from services.trainer.fleet.discovery import Discovery
from services.trainer.fleet.keeper import Keeper
from services.trainer.fleet.orders import Orders
from services.trainer.fleet.replica import Replica


class Members:
    """Keeps the replicas of a fleet those that are found."""

    def __init__(
        self,
        replicas: dict[str, Replica],
        orders: Orders,
        discovery: Discovery,
        *,
        caller: str,
        on_change: Callable[[], None],
        on_leave: Callable[[Replica], None],
    ) -> None:
        """Finds nobody before begin().

        Args:
            replicas: by target, filled here. orders: for their keepers. discovery: says who they are.
            caller: the name under which they know these calls.
            on_change, on_leave: told when anything changes, and when a replica is no longer of the fleet.
        """
        self.keepers: dict[str, Keeper] = {}
        """By target."""
        self._replicas = replicas
        self._orders = orders
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
        return self._is_found and all(keeper.has_looked for keeper in self.keepers.values())

    def begin(self) -> None:
        """Begins to find them, unless it has."""
        if not self._tasks:
            self._run(self._follow())

    def require_alive(self) -> None:
        """Raises what ended a task that should not have ended, such as a ConfigError of the discovery."""
        if self._failure is not None:
            raise self._failure

    async def close(self) -> None:
        """Ends all keepers, and closes all channels."""
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
            self.keepers.pop(target).leave()
            self._on_leave(replica)
            self._orders.metrics.forget(target)
            replica.become("away", f"{replica.name} is no longer of the fleet")
        for target in sorted(targets - self._replicas.keys()):
            replica = Replica(target, caller=self._caller, on_change=self._on_change)
            keeper = Keeper(replica, self._orders)
            self._replicas[target], self.keepers[target] = replica, keeper
            self._run(keeper.run())
        self._orders.metrics.show(self._replicas.values())
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
