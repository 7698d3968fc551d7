"""Reward-model training: Bradley-Terry on preference pairs, from a language model to a checkpoint that is served."""

import json
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf_services.algorithms.preference import bradley_terry_loss
from rlhf_services.common.errors import ConfigError
from rlhf_services.models.loading import load_tokenizer
from rlhf_services.models.scalar_model import ScalarModel
from rlhf_services.models.sequences import pad_sequences, split_by_tokens
from rlhf_services.models.token_scores import sequence_scores
from rlhf_services.trainer.data.preferences import PreferencePair, load_preferences, split_by_prompt
from rlhf_services.trainer.errors import NonFiniteError, RunError
from rlhf_services.trainer.learning.optimizer import MasterOptimizer, require_finite
from rlhf_services.trainer.offline.reward_model_config import RewardModelRunConfig, TrainingConfig
from rlhf_services.trainer.offline.reward_model_report import (
    RewardModelReport,
    pairwise_accuracy,
    pearson,
    wilson_interval,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingStep:
    """The metrics of one optimizer step, as written to metrics.jsonl."""

    step: int
    """From 1."""
    loss: float
    """Mean Bradley-Terry loss of the step's pairs before the update, in nats per pair (log 2 at random)."""
    accuracy: float
    """Share of them that are ranked right before the update."""
    margin: float
    """Mean of chosen minus rejected score, before normalisation."""
    grad_norm: float
    learning_rate: float
    seconds: float
    """Wall time of the step."""


def run_reward_model(config: RewardModelRunConfig, *, console: Console) -> RewardModelReport:
    """Trains, measures, normalises and saves a reward model; returns the report that is also written to the run.

    Raises: ConfigError for a model, file or directory that cannot be used; RunError, naming the step, for a loss or
        gradient that is not finite.
    """
    start = time.monotonic()
    target = config.run_dir / "model"
    if target.exists():
        raise ConfigError(f"run_dir is '{config.run_dir}': it holds a trained model already; choose another directory")
    tokenizer = load_tokenizer(config.model.path)
    preferences = load_preferences(config.data.path, tokenizer, max_tokens=config.data.max_tokens)
    train, heldout = split_by_prompt(preferences.pairs, config.data.heldout_fraction, config.training.seed)
    model = ScalarModel.from_policy(config.model.path, config.model.dtype, config.training.seed)
    model = model.to(_device(config.model.device))
    config.run_dir.mkdir(parents=True, exist_ok=True)
    with (config.run_dir / "metrics.jsonl").open("w", encoding="utf-8") as metrics_file:
        steps = _train(model, train, config, metrics_file, console)
    reward_mean, reward_std = normalize(model, train, config.training)
    margins, length_correlation = measure(model, heldout, config.training)
    accuracy = pairwise_accuracy(margins) if margins else None
    low, high = wilson_interval(accuracy, len(margins)) if accuracy is not None else (None, None)
    last_epoch = steps[-max(1, len(steps) // config.training.epochs) :]
    report = RewardModelReport(
        num_train_pairs=len(train),
        num_heldout_pairs=len(heldout),
        num_too_long=preferences.num_too_long,
        train_loss=statistics.fmean(step.loss for step in last_epoch),
        train_accuracy=statistics.fmean(step.accuracy for step in last_epoch),
        heldout_accuracy=accuracy,
        heldout_accuracy_low=low,
        heldout_accuracy_high=high,
        length_correlation=length_correlation,
        reward_mean=reward_mean,
        reward_std=reward_std,
        seconds=time.monotonic() - start,
    )
    _save(model, tokenizer, target)
    report_path = config.run_dir / "reward_model_report.json"
    report_path.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
    return report


def train_step(
    model: ScalarModel, optimizer: MasterOptimizer, pairs: Sequence[PreferencePair], config: TrainingConfig
) -> tuple[float, list[float], float, float]:
    """Takes one optimizer step on the pairs; returns (loss, margins before it, gradient norm, learning rate).

    The gradient is that of the mean over all pairs, however they are split into micro-batches.

    Raises: NonFiniteError; the weights are then as they were.
    """
    total_loss = 0.0
    margins: list[float] = []
    for micro_batch in micro_batches(pairs, config.micro_batch_tokens):
        chosen, rejected = pair_scores(model, micro_batch)
        loss = bradley_terry_loss(chosen, rejected, center_coef=config.center_coef).sum() / len(pairs)
        require_finite("the loss", loss.detach())
        loss.backward()  # type: ignore[no-untyped-call]
        total_loss += float(loss.detach())
        margins += (chosen - rejected).detach().tolist()
    taken = optimizer.step()
    return total_loss, margins, taken.grad_norm, taken.learning_rate


def pair_scores(model: ScalarModel, pairs: Sequence[PreferencePair]) -> tuple[Tensor, Tensor]:
    """Returns the scores of the chosen and of the rejected sides, [B] each, from one forward pass. Carries gradient."""
    prompts = [pair.prompt_ids for pair in pairs] * 2
    completions = [pair.chosen_ids for pair in pairs] + [pair.rejected_ids for pair in pairs]
    sequences = pad_sequences(prompts, completions).to(next(model.parameters()).device)
    chosen, rejected = sequence_scores(model, sequences).chunk(2)
    return chosen, rejected


def micro_batches(pairs: Sequence[PreferencePair], max_tokens: int) -> Iterator[list[PreferencePair]]:
    """Yields the pairs in groups of like length whose two sides together have at most max_tokens padded tokens."""
    for indices in split_by_tokens([2 * pair.num_tokens for pair in pairs], max_tokens):
        yield [pairs[index] for index in indices]


def normalize(model: ScalarModel, pairs: Sequence[PreferencePair], config: TrainingConfig) -> tuple[float, float]:
    """Makes the completions of the pairs score mean 0, std 1; returns the mean and std they had.

    Raises: RunError if all scores are equal, or one is not finite: such a model tells nothing apart.
    """
    scores: list[float] = []
    with torch.inference_mode():
        for micro_batch in micro_batches(pairs, config.micro_batch_tokens):
            scores += torch.cat(pair_scores(model, micro_batch)).tolist()
    mean, std = statistics.fmean(scores), statistics.pstdev(scores)
    if not std > 0:
        raise RunError(f"the scores of the training completions have standard deviation {std}; nothing was learned")
    model.set_normalization(mean, std)
    return mean, std


def measure(
    model: ScalarModel, pairs: Sequence[PreferencePair], config: TrainingConfig
) -> tuple[list[float], float | None]:
    """Returns the margins (chosen minus rejected score) of the pairs, and the correlation of score and length."""
    margins: list[float] = []
    scores: list[float] = []
    lengths: list[float] = []
    with torch.inference_mode():
        for micro_batch in micro_batches(pairs, config.micro_batch_tokens):
            chosen, rejected = pair_scores(model, micro_batch)
            margins += (chosen - rejected).tolist()
            scores += [*chosen.tolist(), *rejected.tolist()]
            lengths += [len(pair.chosen_ids) for pair in micro_batch] + [len(pair.rejected_ids) for pair in micro_batch]
    return margins, pearson(scores, lengths)


def _train(
    model: ScalarModel,
    pairs: Sequence[PreferencePair],
    config: RewardModelRunConfig,
    metrics_file: TextIO,
    console: Console,
) -> list[TrainingStep]:
    """Trains for all epochs; returns the metrics of each step."""
    training = config.training
    steps_per_epoch = -(-len(pairs) // training.pairs_per_step)
    total_steps = training.epochs * steps_per_epoch
    optimizer = MasterOptimizer("reward model", model, config.optimizer, total_steps=total_steps)
    generator = torch.Generator().manual_seed(training.seed)
    steps: list[TrainingStep] = []
    with _progress(console) as progress:
        bar = progress.add_task("reward model", total=total_steps, facts="")
        for _ in range(training.epochs):
            order = torch.randperm(len(pairs), generator=generator).tolist()
            for first in range(0, len(pairs), training.pairs_per_step):
                batch = [pairs[index] for index in order[first : first + training.pairs_per_step]]
                steps.append(_timed_step(len(steps) + 1, model, optimizer, batch, training))
                metrics_file.write(json.dumps(asdict(steps[-1])) + "\n")
                metrics_file.flush()
                _show(progress, bar, steps)
    return steps


def _timed_step(
    number: int,
    model: ScalarModel,
    optimizer: MasterOptimizer,
    batch: Sequence[PreferencePair],
    config: TrainingConfig,
) -> TrainingStep:
    start = time.monotonic()
    try:
        loss, margins, grad_norm, learning_rate = train_step(model, optimizer, batch, config)
    except NonFiniteError as error:
        raise RunError(f"reward-model training stopped at step {number}: {error}") from error
    return TrainingStep(
        step=number,
        loss=loss,
        accuracy=pairwise_accuracy(margins),
        margin=statistics.fmean(margins),
        grad_norm=grad_norm,
        learning_rate=learning_rate,
        seconds=time.monotonic() - start,
    )


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, TextColumn("{task.fields[facts]}"), console=console)


def _show(progress: Progress, bar: TaskID, steps: Sequence[TrainingStep]) -> None:
    """Advances the bar, with loss and accuracy over the last ten steps, as single steps are noisy."""
    recent = steps[-10:]
    loss = statistics.fmean(step.loss for step in recent)
    accuracy = statistics.fmean(step.accuracy for step in recent)
    progress.update(bar, advance=1, facts=f"loss {loss:.3f}  pairs ranked right {accuracy:.0%}")


def _save(model: ScalarModel, tokenizer: PreTrainedTokenizerBase, target: Path) -> None:
    """Writes the checkpoint beside its place and renames it, so that it is there whole or not at all."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save(partial, tokenizer)
    partial.rename(target)


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)
