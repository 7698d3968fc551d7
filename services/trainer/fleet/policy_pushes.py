"""Pushes one version of the policy after the other: the trained weights as a snapshot, which the whole fleet gets."""

import asyncio
import time
from dataclasses import replace
from typing import TypeVar

from rlhf.errors import RunError, ServiceError
from rlhf.learning.ranks import Ranks, exchange, exchange_failure
from rlhf.learning.snapshot import WeightsSnapshot, take_snapshot
from rlhf.learning.trained_model import TrainedModel
from services.trainer.fleet.peers import Peers
from services.trainer.fleet.push import FleetPush

T = TypeVar("T")

NOTHING = FleetPush(seconds=0.0)


class PolicyPushes:
    """The pushes of a run. All ranks call it alike.

    The newest snapshot stays on the host: a replica that comes late is brought to it without the model, and the next
    one's patch is made from it. On many ranks all take part in a snapshot, and the main one alone keeps it and pushes.
    """

    def __init__(self, model: TrainedModel, peers: Peers, ranks: Ranks, *, in_background: bool = False) -> None:
        """
        Args:
            model: the policy in training. peers: the services.
            in_background: whether push_if_new() may return while the weights are still on their way.
        """
        self.policy_version = 0
        """The version that was pushed last, or is on its way; 0 before the first."""
        self._model = model
        self._peers = peers
        self._ranks = ranks
        self._in_background = in_background
        self._snapshot: WeightsSnapshot | None = None
        self._push: asyncio.Task[None] | None = None
        self._last = NOTHING

    @property
    def weights_digest(self) -> str:
        """Digest of the newest snapshot; empty if this process has taken none."""
        return "" if self._snapshot is None else self._snapshot.digest

    async def push_if_new(self, policy_version: int) -> None:
        """Brings the present weights to the policy services, if they are a version that has not been brought.

        In the background they are copied before it returns and arrive later: what is sampled from then on waits for
        them, what is in flight does not. Raises: as push(); perhaps for the version before.
        """
        if self.policy_version != policy_version:
            await self._start(policy_version)
            if not self._in_background:
                await self._settle()

    async def push(self, policy_version: int) -> None:
        """Makes the policy services serve the present weights, and returns when they do.

        Raises: as Fleet.push, on every rank.
        """
        await self._start(policy_version)
        await self._settle()

    async def unless_it_fails(self, task: asyncio.Task[T]) -> T:
        """Returns what the task does. Raises: what the task does; or as push(), if the weights cannot arrive."""
        if self._push is not None:
            await asyncio.wait({task, self._push}, return_when=asyncio.FIRST_COMPLETED)
            if self._push.done():
                self._push.result()
        return await task

    def report(self) -> FleetPush:
        """Returns what the last push took, once for each; zeros if none has ended since the last report."""
        last, self._last = self._last, NOTHING
        return last

    async def close(self) -> None:
        """Gives up what is on its way."""
        if self._push is not None:
            self._push.cancel()
            # How it ends no longer matters: the run has ended.
            await asyncio.gather(self._push, return_exceptions=True)
            self._push = None

    async def _start(self, policy_version: int) -> None:
        await self._settle()
        started = time.monotonic()
        patches = self._peers.config.push_encoding == "auto"
        snapshot = await asyncio.to_thread(take_snapshot, self._model, policy_version, self._snapshot, patches=patches)
        self._snapshot, self.policy_version = snapshot, policy_version
        snapshot_seconds = time.monotonic() - started

        async def push() -> None:
            pushed = await self._peers.fleet.push(snapshot)
            self._last = replace(pushed, seconds=snapshot_seconds + pushed.seconds)

        self._push = asyncio.create_task(push())
        await asyncio.sleep(0)  # it begins: what is sampled from here on waits for these weights

    async def _settle(self) -> None:
        """Returns once the weights that were on their way have arrived, on all ranks."""
        if self._push is None:
            return
        try:
            await self._push
        except (ServiceError, RunError) as error:
            await exchange_failure(error, self._ranks)
            raise
        await exchange({}, self._ranks)
        self._push = None
