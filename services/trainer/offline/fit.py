"""The loop of all trainings on data: a Task's loss, an order of examples, validation, checkpoints and resuming.

Sums over micro-batches and ranks do not depend on how either is cut. Which examples a step sees is a function of seed
and step alone, so a resumed run needs no cursor.
"""

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import torch
from blake3 import blake3
from rich.console import Console
from torch import Tensor

from rlhf.errors import ConfigError, NonFiniteError, RunError
from rlhf.learning.optimizer import require_finite
from rlhf.learning.ranks import Ranks
from rlhf.learning.steps import MicroLoss, sum_losses
from rlhf.learning.trained_model import TrainedModel
from rlhf.models.sequences import split_by_tokens
from services.trainer.config.offline import FitConfig
from services.trainer.config.sections import CheckpointConfig
from services.trainer.service.signals import EXIT_CODE_BASE, NUMBERS, StopSignal
from services.trainer.state.checkpoint import CheckpointFolder, read_state
from services.trainer.state.run_dir import changed_settings, require_wanted
from services.trainer.telemetry.gauges import FitMetrics, served
from services.trainer.telemetry.step import MetricsFile
from services.trainer.telemetry.terminal import FitProgress

Example = TypeVar("Example")
ExampleIn = TypeVar("ExampleIn", contravariant=True)


class Task(Protocol[ExampleIn]):
    """What one kind of training knows: its examples' cost, its loss, and its metrics."""

    def num_tokens(self, example: ExampleIn) -> int:
        """Returns the tokens of a forward pass over the example."""

    def normalizer(self, batch: Sequence[ExampleIn]) -> float:
        """Returns what the loss of a whole optimizer batch is divided by: its examples, unless overridden."""
        return float(len(batch))

    def prepare(self, batch: Sequence[ExampleIn]) -> None:
        """Computes what the loss needs of the whole optimizer batch, before its micro-batches: nothing, usually."""
        return None

    def loss(self, micro: Sequence[ExampleIn], normalizer: float) -> tuple[Tensor, Mapping[str, float]]:
        """Returns a micro-batch's share of the loss, with gradient, and the sums that describe() needs.

        The shares of all micro-batches add up to the batch's loss; the sums have the same names in every call.
        """

    def describe(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Returns the metrics of a batch from the sums over it. The loss is added by the caller."""


def train_step(
    task: Task[Example],
    trained: TrainedModel,
    batch: Sequence[Example],
    *,
    micro_batch_tokens: int,
    ranks: Ranks,
) -> dict[str, float]:
    """Takes one optimizer step on the batch and returns its metrics, as they were before the step.

    "loss" is the batch's, "tokens" those of its forward passes; "grad_norm" and "learning_rate" are the optimizer's.

    Raises: NonFiniteError, on all ranks together; the weights are then as they were.
    """
    task.prepare(batch)
    sums = _sums(task, batch, micro_batch_tokens, ranks, backward=True)
    require_finite("the loss", sums["loss"])
    taken = trained.step()
    metrics = {"loss": sums["loss"], **task.describe(sums), "tokens": sums["tokens"]}
    return {**metrics, "grad_norm": taken.grad_norm, "learning_rate": taken.learning_rate}


def measure(
    task: Task[Example], examples: Sequence[Example], *, micro_batch_tokens: int, ranks: Ranks
) -> dict[str, float]:
    """Returns "loss" and the task's metrics over the examples, at least one, taken as one batch, without gradient."""
    with torch.no_grad():
        task.prepare(examples)
        sums = _sums(task, examples, micro_batch_tokens, ranks, backward=False)
    return {"loss": sums["loss"], **task.describe(sums)}


def _sums(
    task: Task[Example], batch: Sequence[Example], max_tokens: int, ranks: Ranks, *, backward: bool
) -> dict[str, float]:
    """Returns "loss", "tokens" and the task's sums over the whole batch; backward leaves its gradient behind."""
    normalizer = task.normalizer(batch)

    def losses() -> Iterator[MicroLoss]:
        for share in ranks.share(split_by_tokens([task.num_tokens(example) for example in batch], max_tokens)):
            micro = [batch[index] for index in share.item]
            loss, sums = task.loss(micro, normalizer)
            tokens = sum(task.num_tokens(example) for example in micro)
            yield MicroLoss(loss, {**sums, "tokens": float(tokens)}, share.weight)

    return sum_losses(losses(), ranks, backward=backward)


@dataclass(frozen=True, slots=True, kw_only=True)
class FitRun:
    """Where a training runs, and how."""

    title: str
    """For the terminal and for errors: "SFT"."""
    run_dir: Path
    """Gets metrics.jsonl and checkpoints/; the caller holds run_dir.locked."""
    training: FitConfig
    checkpoint: CheckpointConfig
    console: Console
    resume: bool = False
    """Go on from the newest whole checkpoint; from the start if there is none."""
    ranks: Ranks = field(default_factory=Ranks)
    metrics_port: int | None = None
    """Where Prometheus reads the newest step while it trains; None: nowhere."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """The configuration, as JSON: what of it is not the checkpoint's is said on the terminal; the new values count."""


@dataclass(frozen=True, slots=True)
class FitResult:
    """How a training ended."""

    step: int
    """Steps completed."""
    finished: bool
    """False if a signal stopped it; a checkpoint was then written."""
    metrics: dict[str, float]
    """Of the last step that this process took; empty if it took none."""
    exit_code: int = 0
    """What the process ends with: 128 + the signal's number if one stopped it."""


def fit(
    task: Task[Example], trained: TrainedModel, train: Sequence[Example], heldout: Sequence[Example], run: FitRun
) -> FitResult:
    """Trains to the end, or until SIGTERM or SIGINT, which ends it after the step in progress and a checkpoint.

    Every rank calls it with the same examples. Metrics of held-out examples are those of training with "heldout_"
    before their names.

    Args:
        task: may hold the module; it is trained.module.
        trained: its schedule covers num_steps(len(train), run.training).
        train: at least one example. heldout: measured, never trained on; may be empty.
    Raises: ConfigError if the directory holds a run that is not this one; RunError, naming the step, for a loss or
        gradient that is not finite, or a disk that is full. Checkpoints stay.
    """
    return _Fit(task, trained, train, heldout, run).run_to_end()


class _Fit(Generic[Example]):
    def __init__(
        self,
        task: Task[Example],
        trained: TrainedModel,
        train: Sequence[Example],
        heldout: Sequence[Example],
        run: FitRun,
    ) -> None:
        self._task, self._trained, self._train, self._heldout, self._run = task, trained, train, heldout, run
        self._total = num_steps(len(train), run.training)
        self._checkpoints = CheckpointFolder(run.run_dir, run.checkpoint, run.ranks)
        self._identity = {
            "examples_digest": examples_digest(train),
            "seed": run.training.seed,
            "examples_per_step": run.training.examples_per_step,
        }
        self._changes: list[str] = []
        self._step = self._restore()
        self._metrics = FitMetrics(run.run_dir.name, run.title, self._total)
        self._metrics_file = MetricsFile(run.run_dir / "metrics.jsonl")
        if run.ranks.is_main:
            self._metrics_file.truncate_after(self._step)

    def run_to_end(self) -> FitResult:
        run, metrics = self._run, dict[str, float]()
        with (
            StopSignal(announce=run.ranks.is_main) as stop,
            FitProgress(run.console, title=run.title, total=self._total, done=self._step) as progress,
            served(self._metrics, run.run_dir, run.metrics_port if run.ranks.is_main else None),
        ):
            if self._step > 0:
                progress.say(f"resuming after step {self._step}")
            if self._changes:
                changes = ", ".join(self._changes)
                progress.say(f"the configuration is not that of the checkpoint: {changes}; the new values count")
            while self._step < self._total:
                metrics = self._one_step()
                progress.show(self._step, metrics)
                # A signal reaches the ranks at different moments: they stop together, after the same step.
                asked = run.ranks.sum_values({str(each): float(stop.number == each) for each in NUMBERS})
                stopping = max(each if asked[str(each)] else 0 for each in NUMBERS)
                if stopping or self._checkpoint_due():
                    self._save(metrics)
                if stopping and self._step < self._total:
                    progress.say(f"stopped after step {self._step}; --resume goes on")
                    return FitResult(self._step, False, metrics, EXIT_CODE_BASE + stopping)
        return FitResult(self._step, True, metrics)

    def _one_step(self) -> dict[str, float]:
        started, training = time.monotonic(), self._run.training
        batch = [self._train[index] for index in batch_indices(self._step, len(self._train), training)]
        try:
            metrics = train_step(
                self._task,
                self._trained,
                batch,
                micro_batch_tokens=training.micro_batch_tokens,
                ranks=self._run.ranks,
            )
        except NonFiniteError as error:
            raise RunError(f"{self._run.title} stopped at step {self._step + 1}: {error}") from error
        seconds = time.monotonic() - started
        metrics |= {"seconds": seconds, "tokens_per_second": metrics["tokens"] / seconds}
        self._step += 1
        metrics["epoch"] = self._step / steps_per_epoch(len(self._train), training)
        if self._validation_due():
            measured = measure(
                self._task, self._heldout, micro_batch_tokens=training.micro_batch_tokens, ranks=self._run.ranks
            )
            metrics |= {f"heldout_{name}": value for name, value in measured.items()}
        self._record(metrics)
        return metrics

    def _record(self, metrics: Mapping[str, float]) -> None:
        if not self._run.ranks.is_main:
            return
        self._metrics.observe(self._step, metrics)
        try:
            self._metrics_file.append(self._step, metrics)
        except OSError as error:
            raise RunError(
                f"{self._run.title} stopped after step {self._step}: could not write {self._metrics_file.path}: "
                f"{error}; free some space, then continue with --resume"
            ) from error

    def _validation_due(self) -> bool:
        every = self._run.training.validate_every_steps
        return bool(self._heldout) and (self._step == self._total or (every > 0 and self._step % every == 0))

    def _checkpoint_due(self) -> bool:
        every = self._run.checkpoint.every_steps
        return every > 0 and (self._step % every == 0 or self._step == self._total)

    def _save(self, metrics: Mapping[str, float]) -> None:
        state = {**self._identity, "settings": self._run.settings}
        self._checkpoints.save(self._step, state, self._trained.save_state, metrics)

    def _restore(self) -> int:
        """Takes over the newest checkpoint, if one is there and wanted; returns the steps completed."""
        newest = self._checkpoints.newest()
        require_wanted(self._run.run_dir, newest, resume=self._run.resume)
        state = None if newest is None else read_state(newest)
        if newest is None or state is None:
            return 0
        require_same_run(newest, state, self._identity)
        self._changes = changed_settings(state["settings"], self._run.settings)
        self._trained.load_state(newest)
        return int(state["step"])


def steps_per_epoch(num_examples: int, config: FitConfig) -> int:
    """Returns the optimizer steps of one pass over the examples."""
    return -(-num_examples // config.examples_per_step)


def num_steps(num_examples: int, config: FitConfig) -> int:
    """Returns the optimizer steps of a whole training: what the learning-rate schedule covers."""
    return config.epochs * steps_per_epoch(num_examples, config)


def batch_indices(step: int, num_examples: int, config: FitConfig) -> Sequence[int]:
    """Returns which examples step `step` (from 0) is taken on; an epoch's order depends on seed and epoch alone."""
    epoch, position = divmod(step, steps_per_epoch(num_examples, config))
    order = _order(config.seed, epoch, num_examples)
    return order[position * config.examples_per_step : (position + 1) * config.examples_per_step]


@lru_cache(maxsize=1)
def _order(seed: int, epoch: int, num_examples: int) -> list[int]:
    """The order of an epoch. Kept, for a million examples take half a second to shuffle."""
    order = list(range(num_examples))
    random.Random(f"order {seed} {epoch}").shuffle(order)
    return order


def require_same_run(checkpoint: Path, state: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Raises ConfigError, naming what differs, if a checkpoint's order of examples is not that of this run."""
    for key, value in identity.items():
        if state.get(key) != value:
            raise ConfigError(
                f"{checkpoint} was written with {key.replace('_', ' ')} {state.get(key)}, this run has {value}: the "
                "order of examples would differ; resume with the data and settings that the run began with, or choose "
                "another run_dir"
            )


def examples_digest(examples: Sequence[object]) -> str:
    """Returns the hex BLAKE3 of the examples, in their order; they must have a repr that differs where they do."""
    digest = blake3()
    for example in examples:
        digest.update(repr(example).encode())
    return digest.hexdigest()
