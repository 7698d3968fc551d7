"""A PPO run: its models, optimizers, services and files, built anew or taken from a checkpoint."""

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from transformers import PreTrainedTokenizerBase

from rlhf_services.common.errors import ConfigError
from rlhf_services.common.logs import get_logger
from rlhf_services.common.rollout import Sampling
from rlhf_services.models.loading import load_policy, load_tokenizer, tokenizer_digest
from rlhf_services.models.scalar_model import ScalarModel
from rlhf_services.trainer.checkpoint import (
    CheckpointFolder,
    load_optimizer,
    read_state,
    require_same_model,
    save_optimizer,
    save_policy,
)
from rlhf_services.trainer.config import PpoRunConfig
from rlhf_services.trainer.control import RunControl
from rlhf_services.trainer.metrics import MetricsFile, TrainerMetrics
from rlhf_services.trainer.optimizer import MasterOptimizer
from rlhf_services.trainer.peers import Peers
from rlhf_services.trainer.progress import Progress
from rlhf_services.trainer.prompts import PromptSampler, load_prompts
from rlhf_services.trainer.publish import Publisher
from rlhf_services.trainer.update import PpoUpdater, make_kl_controller

log = get_logger(__name__)

FIRST_POLICY_VERSION = 1
"""The version of the initial weights; 0 is what a policy service loaded by itself."""


class PpoRun:
    """Everything that a run holds while it trains. Building it loads the models, which takes seconds."""

    def __init__(
        self,
        config: PpoRunConfig,
        *,
        checkpoint: Path | None,
        control: RunControl,
        progress: Progress,
        metrics: TrainerMetrics,
    ) -> None:
        """Args: a checkpoint to go on from, or None; where to show and publish what happens.

        Raises: ConfigError if a path, a prompt file or the checkpoint does not fit.
        """
        self.config = config
        self.control = control
        self.step = 0
        """Steps completed."""
        self.policy_version = FIRST_POLICY_VERSION
        """Of the weights as they are, published or not."""
        self.device = _device(config.models.device)
        self.sampling = Sampling(
            max_new_tokens=config.sampling.max_new_tokens,
            temperature=config.sampling.temperature,
            completions_per_prompt=config.ppo.group_size,
            stop_ids=config.sampling.stop_ids,
        )
        self._progress = progress
        self._metrics = metrics
        self._metrics_file = MetricsFile(config.run_dir / "metrics.jsonl")
        self._checkpoints = CheckpointFolder(config.run_dir, keep_last=config.checkpoint.keep_last)
        with _naming("models.policy_path"):
            self._tokenizer: PreTrainedTokenizerBase = load_tokenizer(config.models.policy_path)
        prompt_set = load_prompts(
            config.prompts.path, self._tokenizer, max_prompt_tokens=config.prompts.max_prompt_tokens
        )
        if prompt_set.num_too_long:
            limit = config.prompts.max_prompt_tokens
            progress.say(
                f"{prompt_set.num_too_long} prompts are longer than prompts.max_prompt_tokens ({limit}): left out"
            )
        self.prompts = PromptSampler(prompt_set.items, seed=config.ppo.seed)
        self.updater = self._load_models(checkpoint)
        self._state = self._collect_state()
        if checkpoint is not None:
            self._restore(checkpoint)
        self._metrics_file.truncate_after(self.step)
        self.peers = Peers(config.services, tokenizer_digest=tokenizer_digest(self._tokenizer), report=progress.say)
        self.publisher = Publisher(self.updater.policy, self.peers, policy_version=self.policy_version)
        control.step, control.policy_version = self.step, self.policy_version
        control.waiting_for = lambda: self.peers.waiting_for

    @property
    def checkpoint_due(self) -> bool:
        """Whether the step that just ended is one to be saved."""
        every = self.config.checkpoint.every_steps
        return every > 0 and (self.step % every == 0 or self.step == self.config.ppo.steps)

    def finish_step(self) -> None:
        """Counts the step whose update is done: its weights are a new version."""
        self.step += 1
        self.policy_version += 1
        self._state = self._collect_state()

    async def record(self, metrics: Mapping[str, float], dropped: Mapping[str, int]) -> None:
        """Writes a finished step down, shows it, and lets those who watch know."""
        self._metrics_file.append(self.step, metrics)
        self._metrics.observe(self.step, metrics, dropped)
        self._progress.show(self.step, metrics)
        await self.control.finish_step(self.step, self.policy_version, metrics)

    async def save_checkpoint(self) -> Path:
        """Writes a checkpoint of the last finished step; returns its directory. Raises: RunError if it cannot."""
        started = time.monotonic()
        path = await asyncio.to_thread(self._checkpoints.save, self.step, self._state, self._write_models)
        log.info("checkpoint", step=self.step, path=str(path), seconds=round(time.monotonic() - started, 1))
        return path

    async def save_final(self) -> Path:
        """Writes RUN_DIR/final, the policy as a Hugging Face checkpoint; returns its directory."""
        path = self.config.run_dir / "final"
        await asyncio.to_thread(save_policy, path, self.updater.policy, self._tokenizer)
        return path

    def _load_models(self, checkpoint: Path | None) -> PpoUpdater:
        models, ppo = self.config.models, self.config.ppo
        policy_path, critic_path = models.policy_path, models.critic_path
        if checkpoint is not None:
            require_same_model(checkpoint / "policy", policy_path, "models.policy_path")
            require_same_model(checkpoint / "critic", critic_path, "models.critic_path")
            self._require_same_tokenizer(checkpoint)
            policy_path, critic_path = checkpoint / "policy", checkpoint / "critic"
        with _naming("models.policy_path"):
            policy = load_policy(policy_path, dtype=models.dtype, device=self.device)
        with _naming("models.critic_path"):
            critic = ScalarModel.load(critic_path, models.dtype).to(self.device)
        total = ppo.optimizer_steps
        updater = PpoUpdater(
            policy,
            critic,
            ppo,
            temperature=self.sampling.temperature,
            policy_optimizer=MasterOptimizer("policy", policy, self.config.policy_optimizer, total_steps=total),
            critic_optimizer=MasterOptimizer("critic", critic, self.config.critic_optimizer, total_steps=total),
            kl_controller=make_kl_controller(ppo),
        )
        if checkpoint is not None:
            load_optimizer(checkpoint / "policy_optimizer.safetensors", updater.policy_optimizer)
            load_optimizer(checkpoint / "critic_optimizer.safetensors", updater.critic_optimizer)
        return updater

    def _require_same_tokenizer(self, checkpoint: Path) -> None:
        saved, wanted = tokenizer_digest(load_tokenizer(checkpoint / "policy")), tokenizer_digest(self._tokenizer)
        if saved != wanted:
            raise ConfigError(
                f"{checkpoint} has tokenizer {saved[:12]}, models.policy_path ('{self.config.models.policy_path}') has "
                f"{wanted[:12]}; resume with the model that the run began with, or choose another run_dir"
            )

    def _write_models(self, path: Path) -> None:
        updater = self.updater
        updater.policy.save_pretrained(path / "policy")
        self._tokenizer.save_pretrained(path / "policy")
        updater.critic.save(path / "critic", self._tokenizer)
        save_optimizer(path / "policy_optimizer.safetensors", updater.policy_optimizer)
        save_optimizer(path / "critic_optimizer.safetensors", updater.critic_optimizer)

    def _collect_state(self) -> dict[str, Any]:
        """Returns the part of a checkpoint that is no tensor, as of now: the end of a step."""
        config = self.config.model_dump(mode="json", exclude={"run_dir", "services", "server"})
        return {
            "policy_version": self.policy_version,
            "kl_controller": self.updater.kl_controller.state_dict(),
            "prompts": self.prompts.state(),
            "config": config,
            "config_digest": blake3(repr(config).encode()).hexdigest(),
        }

    def _restore(self, checkpoint: Path) -> None:
        state = read_state(checkpoint)
        if state is None:
            raise ConfigError(f"{checkpoint} is not a whole checkpoint; remove it to resume from an older one")
        self.step, self.policy_version = state["step"], state["policy_version"]
        self.updater.kl_controller.load_state_dict(state["kl_controller"])
        self.prompts.load_state(state["prompts"])
        if state["config_digest"] != self._state["config_digest"]:
            changed = ", ".join(_differences(state["config"], self._state["config"]))
            self._progress.say(f"the configuration is not that of the checkpoint: {changed}; the new values count")
        self._state = self._collect_state()


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Returns "section.key old -> new" for every value that differs."""
    changes: list[str] = []
    for key in new:
        before, after = old.get(key), new[key]
        if isinstance(before, dict) and isinstance(after, dict):
            changes += _differences(before, after, f"{prefix}{key}.")
        elif before != after:
            changes.append(f"{prefix}{key} {before} -> {after}")
    return changes


@contextmanager
def _naming(field: str) -> Iterator[None]:
    """Makes the errors of models.loading, which speak of model.path, name the field that is meant here."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(str(error).replace("model.path", field)) from None


def _device(name: str) -> str:
    """Returns the device to train on. Raises: ConfigError if torch does not know it."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"models.device is '{name}': {reason}; use 'auto', 'cpu' or a device that exists") from None
    return name
