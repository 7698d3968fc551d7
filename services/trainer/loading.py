"""What a PPO run trains: models, optimizers and prompts, as configured or as a checkpoint left them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from blake3 import blake3
from transformers import PreTrainedTokenizerBase

from rlhf_services.common.errors import ConfigError
from rlhf_services.models.loading import load_policy, load_tokenizer, tokenizer_digest
from rlhf_services.models.scalar_model import ScalarModel
from rlhf_services.trainer.checkpoint import load_optimizer, read_state, require_same_model, save_optimizer
from rlhf_services.trainer.data.prompts import PromptSampler, load_prompts
from rlhf_services.trainer.learning.optimizer import MasterOptimizer
from rlhf_services.trainer.learning.update import PpoUpdater, make_kl_controller
from rlhf_services.trainer.online_config import PpoRunConfig

FIRST_POLICY_VERSION = 1
"""The version of the initial weights; 0 is what a policy service loaded by itself."""


@dataclass(slots=True, kw_only=True)
class LoadedRun:
    """A run between two steps."""

    tokenizer: PreTrainedTokenizerBase
    prompts: PromptSampler
    updater: PpoUpdater
    device: str
    step: int = 0
    """Steps completed."""
    policy_version: int = FIRST_POLICY_VERSION
    """Of the weights as they are, published or not."""
    notes: list[str] = field(default_factory=list)
    """What the user should know: prompts left out, values that are not the checkpoint's."""

    def state(self, config: PpoRunConfig) -> dict[str, Any]:
        """Returns the part of a checkpoint that is no tensor."""
        values = config.model_dump(mode="json", exclude={"run_dir", "services", "server"})
        return {
            "policy_version": self.policy_version,
            "kl_controller": self.updater.kl_controller.state_dict(),
            "prompts": self.prompts.state(),
            "config": values,
            "config_digest": blake3(repr(values).encode()).hexdigest(),
        }

    def write_models(self, path: Path) -> None:
        """Writes the part of a checkpoint that is tensors."""
        self.updater.policy.save_pretrained(path / "policy")
        self.tokenizer.save_pretrained(path / "policy")
        self.updater.critic.save(path / "critic", self.tokenizer)
        save_optimizer(path / "policy_optimizer.safetensors", self.updater.policy_optimizer)
        save_optimizer(path / "critic_optimizer.safetensors", self.updater.critic_optimizer)


def load_run(config: PpoRunConfig, checkpoint: Path | None) -> LoadedRun:
    """Returns a run at its start, or as a checkpoint left it. Takes seconds.

    Raises: ConfigError if a path, the prompt file or the checkpoint does not fit.
    """
    device = _device(config.models.device)
    with _naming("models.policy_path"):
        tokenizer = load_tokenizer(config.models.policy_path)
    limit = config.prompts.max_prompt_tokens
    prompt_set = load_prompts(config.prompts.path, tokenizer, max_prompt_tokens=limit)
    prompts = PromptSampler(prompt_set.items, seed=config.training.seed)
    updater = _load_updater(config, tokenizer, checkpoint, device)
    run = LoadedRun(tokenizer=tokenizer, prompts=prompts, updater=updater, device=device)
    if prompt_set.num_too_long:
        run.notes.append(
            f"{prompt_set.num_too_long} prompts are longer than prompts.max_prompt_tokens ({limit}): left out"
        )
    if checkpoint is not None:
        _restore(run, config, checkpoint)
    return run


def _load_updater(
    config: PpoRunConfig, tokenizer: PreTrainedTokenizerBase, checkpoint: Path | None, device: str
) -> PpoUpdater:
    models = config.models
    policy_path, critic_path = models.policy_path, config.critic.path
    if checkpoint is not None:
        require_same_model(checkpoint / "policy", policy_path, "models.policy_path")
        require_same_model(checkpoint / "critic", critic_path, "critic.path")
        _require_same_tokenizer(checkpoint, tokenizer, policy_path)
        policy_path, critic_path = checkpoint / "policy", checkpoint / "critic"
    with _naming("models.policy_path"):
        policy = load_policy(policy_path, dtype=models.dtype, device=device)
    with _naming("critic.path"):
        critic = ScalarModel.load(critic_path, models.dtype).to(device)
    total = config.training.optimizer_steps
    updater = PpoUpdater(
        policy,
        critic,
        config,
        temperature=config.sampling.temperature,
        policy_optimizer=MasterOptimizer("policy", policy, config.policy_optimizer, total_steps=total),
        critic_optimizer=MasterOptimizer("critic", critic, config.critic_optimizer, total_steps=total),
        kl_controller=make_kl_controller(config),
    )
    if checkpoint is not None:
        load_optimizer(checkpoint / "policy_optimizer.safetensors", updater.policy_optimizer)
        load_optimizer(checkpoint / "critic_optimizer.safetensors", updater.critic_optimizer)
    return updater


def _restore(run: LoadedRun, config: PpoRunConfig, checkpoint: Path) -> None:
    state = read_state(checkpoint)
    if state is None:
        raise ConfigError(f"{checkpoint} is not a whole checkpoint; remove it to resume from an older one")
    run.step, run.policy_version = state["step"], state["policy_version"]
    run.updater.kl_controller.load_state_dict(state["kl_controller"])
    run.prompts.load_state(state["prompts"])
    now = run.state(config)
    if state["config_digest"] != now["config_digest"]:
        changed = ", ".join(_differences(state["config"], now["config"]))
        run.notes.append(f"the configuration is not that of the checkpoint: {changed}; the new values count")


def _require_same_tokenizer(checkpoint: Path, tokenizer: PreTrainedTokenizerBase, policy_path: Path) -> None:
    saved, wanted = tokenizer_digest(load_tokenizer(checkpoint / "policy")), tokenizer_digest(tokenizer)
    if saved != wanted:
        raise ConfigError(
            f"{checkpoint} has tokenizer {saved[:12]}, models.policy_path ('{policy_path}') has {wanted[:12]}; resume "
            "with the model that the run began with, or choose another run_dir"
        )


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
def _naming(field_name: str) -> Iterator[None]:
    """Makes the errors of models.loading, which speak of model.path, name the field that is meant here."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(str(error).replace("model.path", field_name)) from None


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
