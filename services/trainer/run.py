"""A PPO run while it trains: what was loaded, the services it calls, and the files it writes."""

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path

from rlhf_services.common.logs import get_logger
from rlhf_services.common.rollout import Sampling
from rlhf_services.models.loading import tokenizer_digest
from rlhf_services.trainer.checkpoint import CheckpointFolder, save_policy
from rlhf_services.trainer.control import RunControl
from rlhf_services.trainer.loading import LoadedRun
from rlhf_services.trainer.metrics import MetricsFile, TrainerMetrics
from rlhf_services.trainer.online_config import PpoRunConfig
from rlhf_services.trainer.progress import Progress
from rlhf_services.trainer.rollouts.peers import Peers
from rlhf_services.trainer.rollouts.publish import Publisher

log = get_logger(__name__)


class PpoRun:
    """Everything that the loop touches."""

    def __init__(
        self,
        config: PpoRunConfig,
        loaded: LoadedRun,
        *,
        control: RunControl,
        progress: Progress,
        metrics: TrainerMetrics,
    ) -> None:
        """Opens channels, so it needs a running event loop. Args: where to show and publish what happens."""
        self.config = config
        self.control = control
        self.prompts = loaded.prompts
        self.updater = loaded.updater
        self.device = loaded.device
        self.sampling = Sampling(
            max_new_tokens=config.sampling.max_new_tokens,
            temperature=config.sampling.temperature,
            completions_per_prompt=config.training.group_size,
            stop_ids=config.sampling.stop_ids,
        )
        digest = tokenizer_digest(loaded.tokenizer)
        self.peers = Peers(config.services, tokenizer_digest=digest, report=progress.say)
        self.publisher = Publisher(loaded.updater.policy, self.peers, policy_version=loaded.policy_version)
        self._loaded = loaded
        self._state = loaded.state(config)
        self._progress = progress
        self._metrics = metrics
        self._metrics_file = MetricsFile(config.run_dir / "metrics.jsonl")
        self._metrics_file.truncate_after(loaded.step)
        self._checkpoints = CheckpointFolder(config.run_dir, keep_last=config.checkpoint.keep_last)
        control.step, control.policy_version = loaded.step, loaded.policy_version
        control.waiting_for = lambda: self.peers.waiting_for

    @property
    def step(self) -> int:
        """Steps completed."""
        return self._loaded.step

    @property
    def policy_version(self) -> int:
        """Version of the weights as they are, published or not."""
        return self._loaded.policy_version

    @property
    def checkpoint_due(self) -> bool:
        """Whether the step that just ended is one to be saved."""
        every = self.config.checkpoint.every_steps
        return every > 0 and (self.step % every == 0 or self.step == self.config.training.steps)

    def finish_step(self) -> None:
        """Counts the step whose update is done: its weights are a new version."""
        self._loaded.step += 1
        self._loaded.policy_version += 1
        self._state = self._loaded.state(self.config)

    async def record(self, metrics: Mapping[str, float], dropped: Mapping[str, int]) -> None:
        """Writes a finished step down, shows it, and lets those who watch know."""
        self._metrics_file.append(self.step, metrics)
        self._metrics.observe(self.step, metrics, dropped)
        self._progress.show(self.step, metrics)
        await self.control.finish_step(self.step, self.policy_version, metrics)

    async def save_checkpoint(self) -> Path:
        """Writes a checkpoint of the last finished step; returns its directory. Raises: RunError if it cannot."""
        started = time.monotonic()
        path = await asyncio.to_thread(self._checkpoints.save, self.step, self._state, self._loaded.write_models)
        log.info("checkpoint", step=self.step, path=str(path), seconds=round(time.monotonic() - started, 1))
        return path

    async def save_final(self) -> Path:
        """Writes RUN_DIR/final, the policy as a Hugging Face checkpoint; returns its directory."""
        path = self.config.run_dir / "final"
        await asyncio.to_thread(save_policy, path, self.updater.policy, self._loaded.tokenizer)
        return path
