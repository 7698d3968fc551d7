"""Whether an engine in another process is alive, and waits on it that end when it is not."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from rlhf.errors import FatalError, NotReadyError, ServiceError
from rlhf.logs import get_logger

T = TypeVar("T")

DEATH_POLL_SECONDS = 0.2
RESTART = (
    "This process exits with code 1 so that its supervisor starts it afresh with the weights it loads at start: "
    "wait until it serves, then push the current weights"
)
"""What a FatalError of the policy advises its caller to do."""

log = get_logger(__name__)


class Liveness:
    """Watches an engine by its process (dead for good) and by probes (stuck: it may come back).

    A call to a dead engine may never return, so every wait goes through call(), which also ends with the engine.
    """

    def __init__(
        self,
        *,
        death: Callable[[], str | None],
        probe: Callable[[], Awaitable[object]],
        probe_seconds: float,
        probe_timeout_seconds: float,
        max_missed_probes: int,
    ) -> None:
        """Makes a watch that start() begins; to be made in the event loop.

        Args:
            death: says what the engine died of; None while it lives.
            probe: asks the engine anything, and returns once it answers.
            probe_seconds, probe_timeout_seconds, max_missed_probes: as in VllmConfig.
        """
        self._death = death
        self._probe = probe
        self._probe_seconds = probe_seconds
        self._probe_timeout_seconds = probe_timeout_seconds
        self._max_missed_probes = max_missed_probes
        self._faults: dict[str, ServiceError] = {}
        self._dead: asyncio.Future[ServiceError] = asyncio.get_running_loop().create_future()
        self._down: asyncio.Future[ServiceError] = asyncio.get_running_loop().create_future()
        self._suspended = False
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begins to watch. Call it in the event loop, once the engine has started."""
        self._tasks = [asyncio.create_task(self._watch_process()), asyncio.create_task(self._watch_probes())]

    async def close(self) -> None:
        """Stops watching."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def report(self, cause: str, error: ServiceError) -> None:
        """Takes the engine down for a cause: check() raises the error, and waits for samples end with it."""
        if cause not in self._faults:
            log.error("the engine is down", cause=cause, error=str(error))
        self._faults[cause] = error
        for end in (self._dead, self._down) if isinstance(error, FatalError) else (self._down,):
            if not end.done():
                end.set_result(error)

    def clear(self, cause: str) -> None:
        """Withdraws a cause."""
        if self._faults.pop(cause, None):
            log.info("the engine recovered", cause=cause)
        if not self._faults and self._down.done():
            self._down = asyncio.get_running_loop().create_future()

    def check(self) -> None:
        """Raises the error of the worst fault there is: FatalError before any other, then the oldest."""
        for error in sorted(self._faults.values(), key=lambda error: not isinstance(error, FatalError)):
            raise error

    async def call(self, work: Callable[[], Awaitable[T]], *, timeout: float, what: str) -> T:
        """Returns what a call to the engine returns. For calls that may repair it: only its death ends them early.

        Raises: FatalError if the engine dies meanwhile, NotReadyError if `timeout` seconds pass, or the call's error.
        """
        return await self._race(work, self._dead, timeout, what)

    async def sample(self, work: Callable[[], Awaitable[T]]) -> T:
        """Returns what `work` returns; raises check()'s error as soon as the engine is down for any cause."""
        self.check()
        return await self._race(work, self._down, None, "")

    @contextmanager
    def without_probes(self) -> Iterator[None]:
        """Sends no probes meanwhile: during a swap the engine answers nothing, and the swap has timeouts of its own."""
        self._suspended = True
        try:
            yield
        finally:
            self._suspended = False

    async def _race(
        self, work: Callable[[], Awaitable[T]], end: asyncio.Future[ServiceError], timeout: float | None, what: str
    ) -> T:
        if end.done():
            raise end.result()
        task = asyncio.ensure_future(work())
        try:
            both: set[asyncio.Future[Any]] = {task, end}
            await asyncio.wait(both, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if end.done():
                raise end.result()
            raise NotReadyError(f"the engine did not finish {what} within {timeout:g} s")
        finally:
            task.cancel()

    async def _watch_process(self) -> None:
        while not self._dead.done():
            reason = self._death()
            if reason is not None:
                self.report("dead", FatalError(f"{reason}. {RESTART}"))
            await asyncio.sleep(DEATH_POLL_SECONDS)

    async def _watch_probes(self) -> None:
        missed = 0
        while not self._dead.done():
            await asyncio.sleep(self._probe_seconds)
            if self._suspended:
                continue
            try:
                await self.call(self._probe, timeout=self._probe_timeout_seconds, what="a probe")
            except NotReadyError:
                missed += 1
                if missed >= self._max_missed_probes:
                    self._report_stuck(missed)
            else:
                missed = 0
                self.clear("stuck")

    def _report_stuck(self, missed: int) -> None:
        self.report(
            "stuck",
            NotReadyError(
                f"the engine has not answered {missed} probes of {self._probe_timeout_seconds:g} s in a row; it serves "
                "again if it answers, otherwise restart this service"
            ),
        )
