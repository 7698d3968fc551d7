"""What an online run trains: models, optimizers and prompts, as configured or as a checkpoint left them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf.algorithms.kl import AdaptiveKlController, FixedKlController
from rlhf.data.chat import ChatExample, load_chat_examples
from rlhf.data.prompts import PromptItem, PromptSampler, load_prompts
from rlhf.errors import ConfigError
from rlhf.learning.batch_scores import RewardShaper
from rlhf.learning.config import KlConfig
from rlhf.learning.ppo import Ppo, SeparateCritic
from rlhf.learning.ptx import Ptx
from rlhf.learning.ranks import ALONE, Ranks
from rlhf.learning.trained_model import TrainedModel
from rlhf.learning.update import KlController, UpdateOptions, Updater
from rlhf.models.loading import (
    enable_activation_checkpointing,
    load_policy,
    load_tokenizer,
    resolve_device,
    tokenizer_digest,
)
from rlhf.models.policy_model import PolicyModel
from rlhf.models.scalar_model import ScalarModel
from services.trainer.config.online import OnlineDpoRunConfig, OnlineRunConfig, PolicyGradientRunConfig, PpoRunConfig
from services.trainer.state.checkpoint import read_state, require_same_model
from services.trainer.state.run_dir import changed_settings
from services.trainer.trainings import make_algorithm

FIRST_POLICY_VERSION = 1
"""The version of the initial weights; 0 is what a policy service loaded by itself."""


@dataclass(slots=True, kw_only=True)
class LoadedRun:
    """A run between two steps."""

    tokenizer: PreTrainedTokenizerBase
    prompts: PromptSampler
    updater: Updater
    device: str
    resumed: bool = False
    """Whether what an earlier process journaled is to be used."""
    step: int = 0
    """Steps completed."""
    policy_version: int = FIRST_POLICY_VERSION
    """Of the weights as they are, pushed or not."""
    heldout: list[PromptItem] = field(default_factory=list)
    """What the policy is evaluated on while it learns; may be empty."""
    notes: list[str] = field(default_factory=list)
    """What the user should know: prompts left out, values that are not the checkpoint's."""

    def settings(self, config: OnlineRunConfig) -> dict[str, Any]:
        """Returns the values that decide what the run samples and learns; services may move, checkpoints differ."""
        others = {"run_dir", "services", "server", "checkpoint", "evaluation", "watch"}
        return config.model_dump(mode="json", exclude=others)

    def state(self, config: OnlineRunConfig, prompts_state: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Returns the part of a checkpoint that is no tensor.

        Args: prompts_state: of the prompts after the last finished step, if those of later ones may have been drawn.
        """
        values = self.settings(config)
        return {
            "policy_version": self.policy_version,
            "kl_controller": self.updater.kl_controller.state_dict(),
            "reward_moments": self.updater.shaper.state_dict(),
            "prompts": dict(self.prompts.state() if prompts_state is None else prompts_state),
            "config": values,
            "config_digest": blake3(repr(values).encode()).hexdigest(),
        }

    def write_models(self, path: Path) -> None:
        """Writes the part of a checkpoint that is tensors. Every rank must call it."""
        policy, critic = self.updater.policy, self.updater.critic
        policy.save_weights(path / "policy", self.tokenizer)
        policy.save_state(path / "policy_state")
        if critic is not None:
            critic.trained.save_state(path / "critic_state")


def load_run(config: OnlineRunConfig, checkpoint: Path | None, *, resume: bool, ranks: Ranks) -> LoadedRun:
    """Returns a run at its start, or as a checkpoint left it. Takes seconds. Every rank must call it.

    Raises: ConfigError if a path, the prompt file or the checkpoint does not fit.
    """
    device = str(resolve_device(config.model.device, "model.device"))
    notes: list[str] = []
    tokenizer = load_tokenizer(config.model.path)
    limit = config.prompts.max_prompt_tokens
    prompt_set = load_prompts(config.prompts.path, tokenizer, max_prompt_tokens=limit)
    if prompt_set.num_too_long:
        notes.append(f"{prompt_set.num_too_long} prompts are longer than prompts.max_prompt_tokens ({limit}): left out")
    demonstrations = _load_demonstrations(config, tokenizer, notes)
    if checkpoint is not None:
        require_same_model(checkpoint / "policy", config.model.path, "model.path")
        _require_same_tokenizer(checkpoint, tokenizer, config.model.path)
    run = LoadedRun(
        tokenizer=tokenizer,
        prompts=PromptSampler(prompt_set.items, seed=config.training.seed),
        updater=_load_updater(config, demonstrations, device, ranks),
        device=device,
        resumed=resume,
        heldout=_load_heldout(config, prompt_set.items, tokenizer, notes),
        notes=notes,
    )
    if checkpoint is not None:
        _restore(run, config, checkpoint)
    return run


def _load_updater(
    config: OnlineRunConfig, demonstrations: list[ChatExample] | None, device: str, ranks: Ranks
) -> Updater:
    """Returns the updater with the models that the run begins with."""
    training, dtype = config.training, config.model.dtype
    model = load_policy(config.model.path, dtype=dtype, device=device)
    per_step = training.epochs * training.minibatches
    head, critic, policy_steps = None, None, training.steps
    if isinstance(config, PpoRunConfig):
        policy_steps -= config.critic.warmup_steps
        if config.critic.kind == "head":
            head = _zero_head(model)
        elif config.critic.path is not None:
            scalar = ScalarModel.load(config.critic.path, dtype, field="critic.path").to(device)
            if config.model.activation_checkpointing:
                enable_activation_checkpointing(scalar)
            critic = TrainedModel(
                "critic", scalar, config.critic_optimizer, total_steps=training.steps * per_step, ranks=ranks
            )
    if config.model.activation_checkpointing:
        enable_activation_checkpointing(model)
    policy = TrainedModel(
        "policy",
        PolicyModel(model, head),
        config.optimizer,
        total_steps=policy_steps * per_step,
        ranks=ranks,
        lora=config.lora,
        seed=training.seed,
    )
    return make_updater(config, policy, critic=critic, demonstrations=demonstrations, ranks=ranks)


def make_updater(
    config: OnlineRunConfig,
    policy: TrainedModel,
    *,
    critic: TrainedModel | None = None,
    demonstrations: list[ChatExample] | None = None,
    ranks: Ranks = ALONE,
) -> Updater:
    """Returns the updater of a run at its start.

    Args:
        policy: around a PolicyModel. critic: around a ScalarModel; None where the algorithm has none of its own.
        demonstrations: those of ptx.path; None without.
    """
    algorithm = make_algorithm(config)
    ptx = None
    if demonstrations is not None:
        ptx = Ptx(
            demonstrations,
            config.ptx,
            seed=config.training.seed,
            micro_batch_tokens=config.training.micro_batch_tokens,
            ranks=ranks,
        )
    return Updater(
        algorithm,
        policy,
        _options(config),
        kl_controller=_kl_controller(config),
        shaper=RewardShaper(config.reward, config.sampling.max_new_tokens),
        critic=SeparateCritic(critic, algorithm) if critic is not None and isinstance(algorithm, Ppo) else None,
        ptx=ptx,
        ranks=ranks,
    )


def _options(config: OnlineRunConfig) -> UpdateOptions:
    training, with_entropy, max_approx_kl = config.training, False, None
    if isinstance(config, PolicyGradientRunConfig):
        with_entropy, max_approx_kl = config.loss.entropy_coef > 0, config.loss.max_approx_kl
    elif isinstance(config, OnlineDpoRunConfig):
        max_approx_kl = config.dpo.max_approx_kl
    return UpdateOptions(
        seed=training.seed,
        epochs=training.epochs,
        minibatches=training.minibatches,
        micro_batch_tokens=training.micro_batch_tokens,
        single_pass_tokens=training.single_pass_tokens,
        temperature=config.sampling.temperature,
        with_entropy=with_entropy,
        max_approx_kl=max_approx_kl,
        warmup_steps=config.critic.warmup_steps if isinstance(config, PpoRunConfig) else 0,
    )


def _kl_controller(config: OnlineRunConfig) -> KlController:
    """Returns the controller of the KL's weight: adaptive if there is a target, 0 where the loss has its own pull."""
    kl = config.kl if isinstance(config, PolicyGradientRunConfig) else KlConfig(coef=0.0)
    if kl.target is None:
        return FixedKlController(kl.coef)
    return AdaptiveKlController(kl.coef, target=kl.target, horizon=kl.horizon)


def _zero_head(model: PreTrainedModel) -> nn.Linear:
    """Returns a value head that says 0 of everything: the first advantages are those of the rewards alone."""
    hidden_size = model.config.get_text_config().hidden_size
    head = nn.Linear(hidden_size, 1, bias=False, dtype=model.dtype, device=model.device)
    nn.init.zeros_(head.weight)
    return head


def _load_demonstrations(
    config: OnlineRunConfig, tokenizer: PreTrainedTokenizerBase, notes: list[str]
) -> list[ChatExample] | None:
    if config.ptx.path is None:
        return None
    loaded = load_chat_examples(config.ptx.path, tokenizer, max_tokens=config.ptx.max_tokens, field="ptx.path")
    notes += [f"{count} demonstrations of ptx.path were left out: {why}" for why, count in loaded.skipped.items()]
    return loaded.examples


def _load_heldout(
    config: OnlineRunConfig, trained_on: Sequence[PromptItem], tokenizer: PreTrainedTokenizerBase, notes: list[str]
) -> list[PromptItem]:
    if config.evaluation.prompts_path is None:
        return []
    loaded = load_prompts(
        config.evaluation.prompts_path,
        tokenizer,
        max_prompt_tokens=config.prompts.max_prompt_tokens,
        field="evaluation.prompts_path",
    )
    items = loaded.items[: config.evaluation.num_prompts]
    known = {tuple(item.prompt_ids) for item in trained_on}
    if num_shared := sum(tuple(item.prompt_ids) in known for item in items):
        notes.append(f"{num_shared} of {len(items)} prompts of evaluation.prompts_path are in prompts.path: trained on")
    return items


def _restore(run: LoadedRun, config: OnlineRunConfig, checkpoint: Path) -> None:
    state = read_state(checkpoint)
    if state is None:
        raise ConfigError(f"{checkpoint} is not a whole checkpoint; remove it to resume from an older one")
    run.updater.policy.load_state(checkpoint / "policy_state")
    if run.updater.critic is not None:
        run.updater.critic.trained.load_state(checkpoint / "critic_state")
    run.step, run.policy_version = state["step"], state["policy_version"]
    run.updater.kl_controller.load_state_dict(state["kl_controller"])
    run.updater.shaper.load_state_dict(state["reward_moments"])
    run.prompts.load_state(state["prompts"])
    now = run.state(config)
    if state["config_digest"] != now["config_digest"]:
        changed = ", ".join(changed_settings(state["config"], now["config"]))
        run.notes.append(f"the configuration is not that of the checkpoint: {changed}; the new values count")


def _require_same_tokenizer(checkpoint: Path, tokenizer: PreTrainedTokenizerBase, policy_path: Path) -> None:
    saved, wanted = tokenizer_digest(load_tokenizer(checkpoint / "policy")), tokenizer_digest(tokenizer)
    if saved != wanted:
        raise ConfigError(
            f"{checkpoint} has tokenizer {saved[:12]}, model.path ('{policy_path}') has {wanted[:12]}; resume "
            "with the model that the run began with, or choose another run_dir"
        )
