"""Brings the trained weights to every policy service, and proves that they arrived."""

import asyncio
import time
from collections.abc import Iterator

from torch import Tensor
from transformers import PreTrainedModel

from rlhf_services.clients.policy import PolicyClient
from rlhf_services.common.errors import ConfigError
from rlhf_services.common.weights import WeightsManifest
from rlhf_services.models.weights import checkpoint_tensors, model_manifest, tensor_bytes
from rlhf_services.trainer.errors import RunError
from rlhf_services.trainer.rollouts.peers import Peers
from rlhf_services.trainer.rollouts.tasks import task_group


class Publisher:
    """Pushes one model's weights. The model must not change while a push is under way."""

    def __init__(self, model: PreTrainedModel, peers: Peers, *, policy_version: int) -> None:
        """Args: the policy in training; the services; the version that was published last (0: none yet)."""
        self.policy_version = policy_version
        self.pause_seconds = 0.0
        """How long the last push kept a policy service from sampling; the longest, if there are several."""
        self._model = model
        self._peers = peers
        self._manifest: WeightsManifest | None = None

    @property
    def weights_digest(self) -> str:
        """Digest of the weights that were published last; empty if none were by this process."""
        return self._manifest.digest if self._manifest is not None else ""

    async def publish(self, policy_version: int) -> float:
        """Makes the model's present weights the given version on every policy service; returns the seconds it took.

        A service that already has exactly these is left alone. Services that are away are waited for.

        Raises: ConfigError if a service serves another type of element; RunError if one answers with other weights;
            NotReadyError if one stays away.
        """
        started = time.monotonic()
        self._manifest = await asyncio.to_thread(model_manifest, self._model)
        self.policy_version = policy_version
        self.pause_seconds = 0.0
        async with task_group() as tasks:
            for policy in self._peers.policies:
                tasks.create_task(self.bring_current(policy))
        return time.monotonic() - started

    async def bring_current(self, policy: PolicyClient) -> None:
        """Pushes the published weights to one policy service, unless it has them."""

        async def push() -> None:
            await self._push(policy)

        await self._peers.call(policy, push)

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
            self.policy_version,
            self._manifest,
            _payload(self._model),
            deadline_seconds=self._peers.config.push_deadline_seconds,
        )
        if (result.policy_version, result.weights_digest) != wanted:
            raise RunError(
                f"{source} answered a push of version {wanted[0]} (digest {wanted[1][:12]}) with version "
                f"{result.policy_version} (digest {result.weights_digest[:12]}); it does not serve what was pushed"
            )
        self.pause_seconds = max(self.pause_seconds, result.pause_seconds)


def _payload(model: PreTrainedModel) -> Iterator[memoryview]:
    tensor: Tensor
    for _, tensor in checkpoint_tensors(model):
        yield tensor_bytes(tensor)
