"""The algorithms by name, and the updater of a run."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from rlhf.algorithms.kl import AdaptiveKlController, FixedKlController
from rlhf.data.chat import ChatExample
from rlhf.learning.algorithm import Algorithm
from rlhf.learning.critic import SeparateCritic
from rlhf.learning.grpo import Grpo
from rlhf.learning.online_dpo import OnlineDpo
from rlhf.learning.ppo import Ppo
from rlhf.learning.ptx import Ptx
from rlhf.learning.ranks import Ranks
from rlhf.learning.reinforce import Reinforce
from rlhf.learning.rloo import Rloo
from rlhf.learning.shaping import RewardShaper
from rlhf.learning.trained_model import TrainedModel
from rlhf.learning.update import KlController, UpdateOptions, Updater
from services.trainer.config.online import OnlineDpoRunConfig, OnlineRunConfig, PolicyGradientRunConfig, PpoRunConfig
from services.trainer.config.online_sections import KlConfig

ALGORITHMS: Mapping[str, Callable[[Any], Algorithm]] = MappingProxyType(
    {"ppo": Ppo, "grpo": Grpo, "rloo": Rloo, "reinforce++": Reinforce, "online-dpo": OnlineDpo}
)
"""Each is made from its run's configuration (online_config.RUN_CONFIGS has the same names)."""


def make_updater(
    config: OnlineRunConfig,
    policy: TrainedModel,
    *,
    critic: TrainedModel | None = None,
    demonstrations: list[ChatExample] | None = None,
    ranks: Ranks | None = None,
) -> Updater:
    """Returns the updater of a run at its start.

    Args:
        policy: around a PolicyModel. critic: around a ScalarModel; None where the algorithm has none of its own.
        demonstrations: those of ptx.path; None without.
    """
    ranks = Ranks() if ranks is None else ranks
    algorithm = ALGORITHMS[config.algorithm](config)
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
    with_entropy, max_approx_kl = False, None
    if isinstance(config, PolicyGradientRunConfig):
        with_entropy, max_approx_kl = config.loss.entropy_coef > 0, config.loss.max_approx_kl
    elif isinstance(config, OnlineDpoRunConfig):
        max_approx_kl = config.dpo.max_approx_kl
    return UpdateOptions(
        training=config.training,
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
