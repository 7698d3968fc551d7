"""What all trainings of a policy on data share: from a model in a folder to the trained one in RUN_DIR/final."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import TypeVar

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from rlhf.errors import ConfigError
from rlhf.learning.ranks import Ranks, join_ranks
from rlhf.learning.trained_model import TrainedModel
from rlhf.logs import configure_logging
from rlhf.models.loading import enable_activation_checkpointing, load_policy, load_tokenizer, resolve_device
from rlhf.models.policy_model import PolicyModel
from rlhf.process import keep_freed_memory
from services.trainer.config.offline import PolicyRunConfig
from services.trainer.offline.fit import FitRun, Task, fit, num_steps
from services.trainer.state.checkpoint import write_directory
from services.trainer.state.run_dir import locked
from services.trainer.telemetry.terminal import say

Example = TypeVar("Example")


Split = tuple[list[Example], list[Example]]
"""Examples to train on, and held-out ones."""
LoadData = Callable[[PreTrainedTokenizerBase, Ranks, Callable[[str], None]], Split[Example]]
"""Given the tokenizer, the ranks, and whom to tell what was left out."""
MakeTask = Callable[[PolicyModel, Ranks], Task[Example]]


def train_policy(
    config: PolicyRunConfig,
    title: str,
    load_data: LoadData[Example],
    make_task: MakeTask[Example],
    *,
    resume: bool,
    console: Console,
) -> int:
    """Trains to the end and writes RUN_DIR/final; returns the exit code: 0 finished, 128 + a signal's number stopped.

    Under torchrun every rank calls it; the first one alone talks and writes.

    Raises: ConfigError for a model, data or directory that cannot be used; RunError for a run that cannot go on.
    """
    if not config.model.path.is_dir():
        raise ConfigError(f"model.path is '{config.model.path}': no such directory; give the folder of a checkpoint")
    configure_logging("warning", "trainer")
    keep_freed_memory()
    ranks = join_ranks()
    console = console if ranks.is_main else Console(quiet=True)
    with locked(config.run_dir) if ranks.is_main else nullcontext():
        return _train(config, title, load_data, make_task, resume=resume, console=console, ranks=ranks)


def _train(
    config: PolicyRunConfig,
    title: str,
    load_data: LoadData[Example],
    make_task: MakeTask[Example],
    *,
    resume: bool,
    console: Console,
    ranks: Ranks,
) -> int:
    final = config.run_dir / "final"
    if final.exists() and not resume:
        raise ConfigError(f"run_dir is '{config.run_dir}': it holds a trained model already; choose another directory")
    tokenizer = load_tokenizer(config.model.path)
    train, heldout = load_data(tokenizer, ranks, lambda message: say(console, message))
    say(console, f"{len(train)} examples to train on, {len(heldout)} held out")
    policy, trained = _load_model(config, num_steps(len(train), config.training), ranks)
    run = FitRun(
        title=title,
        run_dir=config.run_dir,
        training=config.training,
        checkpoint=config.checkpoint,
        console=console,
        resume=resume,
        ranks=ranks,
        settings=config.model_dump(mode="json", exclude={"run_dir", "services", "server"}),
        metrics_port=config.server.metrics_port,
    )
    task = make_task(policy, ranks)
    result = fit(task, trained, train, heldout, run)
    if not result.finished:
        return result.exit_code
    write_directory(final, lambda path: trained.save_weights(path, tokenizer), ranks)
    say(console, f"saved {final}")
    return 0


def _load_model(config: PolicyRunConfig, total_steps: int, ranks: Ranks) -> tuple[PolicyModel, TrainedModel]:
    device = resolve_device(config.model.device, "model.device")
    policy = PolicyModel(load_policy(config.model.path, dtype=config.model.dtype, device=str(device)))
    if config.model.activation_checkpointing:
        enable_activation_checkpointing(policy)
    return policy, TrainedModel(
        "policy",
        policy,
        config.optimizer,
        total_steps=total_steps,
        ranks=ranks,
        lora=config.lora,
        seed=config.training.seed,
    )
