"""All kinds of training: the one list that commands, pipelines, clusters and the trainer read. Loads none of them.

A new online algorithm is its class in rlhf/learning, its configuration in config/online.py, and a row here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pkgutil import resolve_name
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from rlhf.config import Section
    from rlhf.learning.algorithm import Algorithm
    from services.trainer.config.online import OnlineRunConfig

ONLINE_RUN = "services.trainer.server:run_online"


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """A kind of training. What takes time to import is named as "module:name"."""

    name: str
    """After `rlhf train`."""
    help: str
    """One sentence on the command line."""
    config: str
    """Class of its configuration, whose module imports no torch."""
    algorithm: str = ""
    """Class of an online algorithm, made with its configuration's algorithm_options(); empty for training on data."""
    run: str = ONLINE_RUN
    """Function of (configuration, resume, console) that trains to the end and returns the exit code."""
    env_prefix: str = "RLHF_TRAINER"
    """Of the environment variables that set fields."""
    example: str = "--training.steps 30"
    """A field as a flag, for the help text."""
    model: str = "final"
    """Folder of the trained model inside the run's directory."""
    is_policy: bool = True
    """Whether it trains a policy on preferences or rewards, which an evaluation compares with the others."""
    learns_from_pairs: bool = False
    """Whether its data.path is a file of preferences."""

    table: str = ""
    """Of a pipeline's file, if it is not called as the training."""

    @property
    def stage(self) -> str:
        """Name of its table and its stage in a pipeline."""
        return self.table or self.name

    @property
    def is_online(self) -> bool:
        """Whether it samples from the policy it trains."""
        return bool(self.algorithm)

    @property
    def config_class(self) -> "type[Section]":
        """The class of its configuration."""
        found: type[Section] = resolve_name(self.config)
        return found

    def run_to_end(self, config: "Section", *, resume: bool, console: "Console") -> int:
        """Trains to the end and returns the exit code. Raises: ConfigError if it cannot begin as configured."""
        code: int = resolve_name(self.run)(config, resume=resume, console=console)
        return code


TRAININGS: Mapping[str, Training] = MappingProxyType(
    {
        each.name: each
        for each in (
            Training(
                name="sft",
                help="Fine-tune a policy on conversations or on prompts with completions.",
                config="services.trainer.config.offline:SftRunConfig",
                run="services.trainer.offline.sft:run_sft",
                env_prefix="RLHF_SFT",
                example="--training.epochs 2",
                is_policy=False,
            ),
            Training(
                name="reward-model",
                help="Train a reward model, or an ensemble, on pairs or rankings, and save what rlhf-reward serves.",
                config="services.trainer.config.offline:RewardModelRunConfig",
                run="services.trainer.offline.reward_model.train:train_reward_model",
                env_prefix="RLHF_REWARD_MODEL",
                example="--training.epochs 2",
                model="model",
                table="reward_model",
                is_policy=False,
                learns_from_pairs=True,
            ),
            Training(
                name="ppo",
                help="Train the policy against the reward service with PPO: a critic, and a KL penalty to the "
                "reference.",
                config="services.trainer.config.online:PpoRunConfig",
                algorithm="rlhf.learning.ppo:Ppo",
            ),
            Training(
                name="grpo",
                help="Train the policy with GRPO: completions of one prompt against one another, in their own spread.",
                config="services.trainer.config.online:GrpoRunConfig",
                algorithm="rlhf.learning.grpo:Grpo",
            ),
            Training(
                name="rloo",
                help="Train the policy with RLOO: each completion against the mean of the prompt's others.",
                config="services.trainer.config.online:RlooRunConfig",
                algorithm="rlhf.learning.rloo:Rloo",
            ),
            Training(
                name="reinforce++",
                help="Train the policy with REINFORCE++: returns whitened over the batch, without a critic.",
                config="services.trainer.config.online:ReinforceRunConfig",
                algorithm="rlhf.learning.reinforce:Reinforce",
            ),
            Training(
                name="online-dpo",
                help="Train the policy with DPO on pairs that it samples and the reward service judges.",
                config="services.trainer.config.online:OnlineDpoRunConfig",
                algorithm="rlhf.learning.online_dpo:OnlineDpo",
            ),
            Training(
                name="dpo",
                help="Train a policy on preference pairs directly: DPO and its relatives.",
                config="services.trainer.config.offline:DpoRunConfig",
                run="services.trainer.offline.dpo.train:run_dpo",
                env_prefix="RLHF_DPO",
                example="--dpo.variant ipo",
                learns_from_pairs=True,
            ),
        )
    }
)
"""By name, in the order in which help and pipelines list them."""

ONLINE: Mapping[str, Training] = MappingProxyType({name: each for name, each in TRAININGS.items() if each.is_online})
"""The online algorithms among them."""


def make_algorithm(config: "OnlineRunConfig") -> "Algorithm":
    """Returns the algorithm of an online run."""
    made: Algorithm = resolve_name(ONLINE[config.algorithm].algorithm)(**config.algorithm_options())
    return made
