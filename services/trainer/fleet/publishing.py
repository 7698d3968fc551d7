"""Takes the trained weights as a snapshot, and has the fleet serve it."""

import asyncio
import time
from dataclasses import replace
from typing import TypeVar

from rlhf.errors import RunError, ServiceError
from rlhf.learning.ranks import Ranks
from rlhf.learning.snapshot import WeightsSnapshot, take_snapshot
from rlhf.learning.trained_model import TrainedModel
from services.trainer.fleet.orders import Publication
from services.trainer.fleet.peers import Peers
from services.trainer.rollouts.gather import gather_failure, gather_success


class Publisher:
    """Publishes one model's weights.

    The newest snapshot stays on the host: a replica that comes late is brought to it without the model, and the next
    one's patch is made from it. On many ranks all take part in a snapshot, and the main one alone keeps it and pushes.
    """

    def __init__(self, model: TrainedModel, peers: Peers, *, policy_version: int = 0) -> None:
        """Args: the policy in training; the services; the version that was published last (0: none yet)."""
        self.policy_version = policy_version
        """Of the newest snapshot."""
        self._model = model
        self._peers = peers
        self._snapshot: WeightsSnapshot | None = None

    @property
    def weights_digest(self) -> str:
        """Digest of the newest snapshot; empty if this process has taken none."""
        return "" if self._snapshot is None else self._snapshot.digest

    async def snapshot(self, policy_version: int) -> WeightsSnapshot:
        """Returns the model's present weights as the given version. All ranks call it; the model must not change."""
        config = self._peers.config
        patches = config.push_encoding == "auto"
        snapshot = await asyncio.to_thread(take_snapshot, self._model, policy_version, self._snapshot, patches=patches)
        self._snapshot, self.policy_version = snapshot, policy_version
        return snapshot

    async def deliver(self, snapshot: WeightsSnapshot) -> Publication:
        """Has all policy services serve a snapshot; the model may change meanwhile. Raises: as Fleet.publish()."""
        return await self._peers.fleet.publish(snapshot)


T = TypeVar("T")

NOTHING = Publication(seconds=0.0)


class Publishing:
    """Publishes one version of the policy after the other. All ranks call it alike."""

    def __init__(self, publisher: Publisher, ranks: Ranks, *, in_background: bool) -> None:
        """Args: in_background: whether publish_if_new() may return while the weights are still on their way."""
        self._publisher = publisher
        self._ranks = ranks
        self._in_background = in_background
        self._delivery: asyncio.Task[None] | None = None
        self._last = NOTHING

    @property
    def policy_version(self) -> int:
        """The version that was published last, or is on its way; 0 before the first."""
        return self._publisher.policy_version

    async def publish_if_new(self, policy_version: int) -> None:
        """Brings the present weights to the policy services, if they are a version that has not been brought.

        In the background they are copied before it returns and arrive later: what is sampled from then on waits for
        them, what is in flight does not. Raises: as publish(); perhaps for the version before.
        """
        if self.policy_version != policy_version:
            await self._start(policy_version)
            if not self._in_background:
                await self._settle()

    async def publish(self, policy_version: int) -> None:
        """Makes the policy services serve the present weights, and returns when they do.

        Raises: as Publisher.deliver, on every rank.
        """
        await self._start(policy_version)
        await self._settle()

    async def unless_it_fails(self, task: asyncio.Task[T]) -> T:
        """Returns what the task does. Raises: what the task does; or as publish(), if the weights cannot arrive."""
        if self._delivery is not None:
            await asyncio.wait({task, self._delivery}, return_when=asyncio.FIRST_COMPLETED)
            if self._delivery.done():
                self._delivery.result()
        return await task

    def report(self) -> Publication:
        """Returns what the last push took, once for each; zeros if none has ended since the last report."""
        last, self._last = self._last, NOTHING
        return last

    async def close(self) -> None:
        """Gives up what is on its way."""
        if self._delivery is not None:
            self._delivery.cancel()
            # How it ends no longer matters: the run has ended.
            await asyncio.gather(self._delivery, return_exceptions=True)
            self._delivery = None

    async def _start(self, policy_version: int) -> None:
        await self._settle()
        started = time.monotonic()
        snapshot = await self._publisher.snapshot(policy_version)
        snapshot_seconds = time.monotonic() - started

        async def deliver() -> None:
            delivered = await self._publisher.deliver(snapshot)
            self._last = replace(delivered, seconds=snapshot_seconds + delivered.seconds)

        self._delivery = asyncio.create_task(deliver())
        await asyncio.sleep(0)  # it begins: what is sampled from here on waits for these weights

    async def _settle(self) -> None:
        """Returns once the weights that were on their way have arrived, on all ranks."""
        if self._delivery is None:
            return
        try:
            await self._delivery
        except (ServiceError, RunError) as error:
            await gather_failure(error, self._ranks)
            raise
        await gather_success(self._ranks)
        self._delivery = None
