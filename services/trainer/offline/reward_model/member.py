"""One member of an ensemble, or the only reward model: trained, normalised, saved, and known when it is met again."""

import json
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from rlhf.data.preferences import PreferenceGroup
from rlhf.errors import ConfigError, StoppedError
from rlhf.learning.ranks import Ranks
from rlhf.learning.trained_model import TrainedModel
from rlhf.models.loading import enable_activation_checkpointing, resolve_device
from rlhf.models.scalar_model import ScalarModel
from services.trainer.config.offline import RewardModelRunConfig
from services.trainer.offline.fit import FitRun, examples_digest, fit, num_steps, steps_per_epoch
from services.trainer.offline.reward_model.task import RewardModelTask, normalize
from services.trainer.state.checkpoint import write_directory
from services.trainer.telemetry.step import MetricsFile

FACTS_FILE = "reward_model_training.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberFacts:
    """What a saved member says of its training; a file beside its weights."""

    base_model: str
    """Path of the language model that it began as."""
    seed: int
    examples_digest: str
    """BLAKE3 of its training examples."""
    num_steps: int
    train_loss: float
    """Mean over the last epoch, before each update, in nats per pair."""
    train_accuracy: float
    reward_mean: float
    """Mean score of the training completions before normalisation."""
    reward_std: float


@dataclass(frozen=True, slots=True)
class Member:
    """A member's number, and where it is."""

    index: int
    config: RewardModelRunConfig

    @property
    def seed(self) -> int:
        """Decides its head, its order of examples, and what a bootstrap draws."""
        return self.config.training.seed + self.index

    @property
    def model_path(self) -> Path:
        """The folder of the trained model."""
        name = "model" if self.config.ensemble.members == 1 else f"model-{self.index}"
        return self.config.run_dir / name

    @property
    def run_dir(self) -> Path:
        """The folder of its metrics and checkpoints."""
        run_dir = self.config.run_dir
        return run_dir if self.config.ensemble.members == 1 else run_dir / f"member-{self.index}"

    @property
    def title(self) -> str:
        """For the terminal and for errors."""
        members = self.config.ensemble.members
        return "reward model" if members == 1 else f"reward model {self.index + 1} of {members}"

    def examples(self, train: Sequence[PreferenceGroup]) -> Sequence[PreferenceGroup]:
        """Returns what this member learns from."""
        if self.config.ensemble.data == "all":
            return train
        return random.Random(f"bootstrap {self.seed}").choices(train, k=len(train))

    def facts(self) -> MemberFacts | None:
        """Returns what is known of the finished member; None if it is not finished."""
        path = self.model_path / FACTS_FILE
        if not self.model_path.exists():
            return None
        try:
            return MemberFacts(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, json.JSONDecodeError, TypeError):
            raise ConfigError(
                f"run_dir is '{self.config.run_dir}': {self.model_path.name} in it was not trained by this command "
                f"(no {FACTS_FILE} that can be read); choose another directory"
            ) from None

    def require_same(self, facts: MemberFacts, train: Sequence[PreferenceGroup]) -> None:
        """Raises ConfigError if a finished member is not what this configuration would train."""
        wanted: Mapping[str, object] = {
            "base_model": str(self.config.model.path),
            "seed": self.seed,
            "examples_digest": examples_digest(self.examples(train)),
            "num_steps": num_steps(len(train), self.config.training),
        }
        for name, value in wanted.items():
            found = getattr(facts, name)
            if found != value:
                raise ConfigError(
                    f"{self.model_path} was trained with {name.replace('_', ' ')} {found}, this run has {value}; "
                    "resume with the configuration and data that the run began with, or choose another run_dir"
                )


def train_member(
    member: Member,
    train: Sequence[PreferenceGroup],
    heldout: Sequence[PreferenceGroup],
    tokenizer: PreTrainedTokenizerBase,
    *,
    console: Console,
    resume: bool,
    ranks: Ranks,
) -> None:
    """Trains a member and saves it normalised.

    It goes through a folder, whatever it was trained as (shards, adapters), so that what is normalised is what is
    served, rounding included.

    Raises: ConfigError, RunError as fit() does; RunError if the trained model scores all alike; StoppedError if a
        signal stopped it before its end.
    """
    examples = member.examples(train)
    staging = member.run_dir / ".unnormalised"
    _fit(member, examples, heldout, tokenizer, staging, console=console, resume=resume, ranks=ranks)
    model = _load(staging, member.config)
    mean, std = normalize(model, examples, max_tokens=member.config.training.micro_batch_tokens, ranks=ranks)

    def write(path: Path) -> None:
        if ranks.is_main:
            model.save(path, tokenizer)
            facts = _facts(member, examples, mean, std)
            (path / FACTS_FILE).write_text(json.dumps(asdict(facts), indent=1) + "\n", encoding="utf-8")

    write_directory(member.model_path, write, ranks)
    if ranks.is_main:
        shutil.rmtree(staging, ignore_errors=True)


def load_member(member: Member) -> ScalarModel:
    """Returns a saved member as the reward service would serve it."""
    return _load(member.model_path, member.config)


def _fit(
    member: Member,
    examples: Sequence[PreferenceGroup],
    heldout: Sequence[PreferenceGroup],
    tokenizer: PreTrainedTokenizerBase,
    staging: Path,
    *,
    console: Console,
    resume: bool,
    ranks: Ranks,
) -> None:
    """Trains a member and writes it to `staging`, not normalised. Model and optimizer are freed when it returns."""
    config = member.config
    member.run_dir.mkdir(parents=True, exist_ok=True)
    model = ScalarModel.from_policy(config.model.path, config.model.dtype, member.seed)
    if config.model.activation_checkpointing:
        enable_activation_checkpointing(model.backbone)
    trained = TrainedModel(
        "reward model",
        model.to(resolve_device(config.model.device, "model.device")),
        config.optimizer,
        total_steps=num_steps(len(examples), config.training),
        ranks=ranks,
        lora=config.lora,
        seed=member.seed,
    )
    run = FitRun(
        title=member.title,
        run_dir=member.run_dir,
        training=config.training.model_copy(update={"seed": member.seed}),
        checkpoint=config.checkpoint,
        console=console,
        resume=resume,
        ranks=ranks,
        metrics_port=config.server.metrics_port,
    )
    result = fit(RewardModelTask(model, config.training.center_coef), trained, examples, heldout, run)
    if not result.finished:
        raise StoppedError(result.exit_code)
    write_directory(staging, lambda path: trained.save_weights(path, tokenizer), ranks)


def _load(path: Path, config: RewardModelRunConfig) -> ScalarModel:
    model = ScalarModel.load(path, config.model.dtype)
    return model.to(resolve_device(config.model.device, "model.device"))


def _facts(member: Member, examples: Sequence[PreferenceGroup], mean: float, std: float) -> MemberFacts:
    config = member.config
    rows = MetricsFile(member.run_dir / "metrics.jsonl").read()
    last_epoch = rows[-steps_per_epoch(len(examples), config.training) :]
    return MemberFacts(
        base_model=str(config.model.path),
        seed=member.seed,
        examples_digest=examples_digest(examples),
        num_steps=len(rows),
        train_loss=fmean(row["loss"] for row in last_epoch),
        train_accuracy=fmean(row["accuracy"] for row in last_epoch),
        reward_mean=mean,
        reward_std=std,
    )
