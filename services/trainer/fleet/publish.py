"""Brings the trained weights to every policy service, and proves that they arrived."""

import asyncio
import time
from collections.abc import Iterator

from torch import Tensor

from rlhf_services.clients.policy import PolicyClient
from rlhf_services.common.errors import ConfigError, NotReadyError
from rlhf_services.common.pushes import PushHeader
from rlhf_services.common.weights import WeightsManifest
from rlhf_services.models.weights import tensor_bytes, tensor_info
from rlhf_services.trainer.errors import RunError
from rlhf_services.trainer.fleet.peers import Peers
from rlhf_services.trainer.learning.trained_model import TrainedModel
from rlhf_services.trainer.rollouts.tasks import task_group

POLL_SECONDS = 0.5
"""Between two looks of another rank at a service that the main one has to bring current."""


class Publisher:
    """Pushes one model's weights. The model must not change while a push is under way.

    Weights that are in shards, on a GPU or under adapters are brought together once for each version and kept on the
    host, for all services. On many ranks all take part in that, a layer at a time, and the main one keeps them and
    pushes. So it can bring a service current that comes late, without the other ranks; those wait until it has.
    """

    def __init__(self, model: TrainedModel, peers: Peers, *, policy_version: int) -> None:
        """Args: the policy in training; the services; the version that was published last (0: none yet)."""
        self.policy_version = policy_version
        self.pause_seconds = 0.0
        """How long the last push kept a policy service from sampling; the longest, if there are several."""
        self._model = model
        self._peers = peers
        self._manifest: WeightsManifest | None = None
        self._digest = ""
        self._gathered: list[tuple[str, Tensor]] = []

    @property
    def weights_digest(self) -> str:
        """Digest of the weights that were published last; empty if none were by this process."""
        return self._digest

    async def publish(self, policy_version: int) -> float:
        """Makes the model's present weights the given version on every policy service; returns the seconds it took.

        A service that already has exactly these is left alone. Services that are away are waited for. Every rank must
        call it; the others are done once the weights are gathered.

        Raises: ConfigError if a service serves another type of element; RunError if one answers with other weights;
            NotReadyError if one stays away.
        """
        started = time.monotonic()
        self.policy_version = policy_version
        self.pause_seconds = 0.0
        self._manifest, self._digest = await asyncio.to_thread(self._gather)
        if not self._model.ranks.is_main:
            return time.monotonic() - started
        async with task_group() as tasks:
            for policy in self._peers.policies:
                tasks.create_task(self.bring_current(policy))
        return time.monotonic() - started

    async def bring_current(self, policy: PolicyClient) -> None:
        """Pushes the published weights to one policy service, unless it has them; other ranks wait for the main one.

        Raises: as publish() does; NotReadyError on another rank if the main one does not push for too long.
        """

        async def push() -> None:
            await self._push(policy)

        if self._model.ranks.is_main:
            await self._peers.call(policy, push)
        else:
            await self._wait_until_current(policy)

    async def _push(self, policy: PolicyClient) -> None:
        if self._manifest is None:
            raise RuntimeError("bring_current() before publish(): there is no manifest of the weights yet")
        wanted = (self.policy_version, self._manifest.digest)
        source = f"{policy.service} at {policy.target}"
        served = await policy.get_model()
        if (served.policy_version, served.weights_digest) == wanted:
            return
        ours = self._manifest.tensors[0].dtype
        if served.dtype != ours:
            raise ConfigError(
                f"{source} serves {served.dtype}, the trainer has {ours} (models.dtype): start the service with the "
                "trainer's dtype, or set models.dtype to the service's"
            )
        result = await policy.update_weights(
            PushHeader.full(self.policy_version, self._manifest),
            self._payload(),
            deadline_seconds=self._peers.config.push_deadline_seconds,
        )
        if (result.policy_version, result.weights_digest) != wanted:
            raise RunError(
                f"{source} answered a push of version {wanted[0]} (digest {wanted[1][:12]}) with version "
                f"{result.policy_version} (digest {result.weights_digest[:12]}); it does not serve what was pushed"
            )
        self.pause_seconds = max(self.pause_seconds, result.pause_seconds)

    async def _wait_until_current(self, policy: PolicyClient) -> None:
        wanted = (self.policy_version, self._digest)
        patience = self._peers.config.wait_for_services_seconds
        deadline = time.monotonic() + patience
        while True:
            served = await self._peers.call(policy, policy.get_model)
            if (served.policy_version, served.weights_digest) == wanted:
                return
            if time.monotonic() > deadline:
                raise NotReadyError(
                    f"{policy.service} at {policy.target} serves version {served.policy_version}, and the main rank "
                    f"did not bring it to version {wanted[0]} within services.wait_for_services_seconds ({patience:g})"
                )
            await asyncio.sleep(POLL_SECONDS)

    def _gather(self) -> tuple[WeightsManifest, str]:
        """Returns what the weights are, and their digest; the main rank keeps them, unless they are the model's own.

        On other ranks the manifest is empty.
        """
        ranks, infos = self._model.ranks, []
        keeps = not self._model.serves_own_memory
        self._gathered = []
        for name, tensor in self._model.weights():
            if not ranks.is_main:
                continue
            infos.append(tensor_info(name, tensor))
            if keeps:
                self._gathered.append((name, tensor))
        manifest = WeightsManifest(tuple(infos))
        return manifest, ranks.gather_bytes(manifest.digest.encode())[0].decode()

    def _payload(self) -> Iterator[memoryview]:
        """Yields the bytes in the manifest's order. A plain model on the CPU is read itself, and nothing is kept."""
        for _, tensor in self._gathered or self._model.weights():
            yield tensor_bytes(tensor)
