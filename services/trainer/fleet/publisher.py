"""Takes the trained weights as a snapshot, and has the fleet serve it."""

import asyncio

from rlhf.learning.snapshot import WeightsSnapshot, take_snapshot
from rlhf.learning.trained_model import TrainedModel
from services.trainer.fleet.orders import Publication
from services.trainer.fleet.peers import Peers


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
