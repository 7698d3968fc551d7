"""Reward-model training: from preferences to a model or an ensemble, and a report of its quality.

preferences -> split by prompt -> each member (member.py): fit, normalise, save
-> scores of the held-out completions -> report as table, JSON and plot
"""

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from rich.console import Console
from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from rlhf.data.preferences import PreferenceGroup, Preferences, load_preferences, merge_by_prompt, split_by_prompt
from rlhf.errors import ConfigError, RunError, StoppedError
from rlhf.learning.ranks import Ranks, join_ranks
from rlhf.logs import configure_logging
from rlhf.models.loading import load_tokenizer, max_positions, require_model_folder
from rlhf.process import keep_freed_memory
from services.trainer.config.offline import PreferencesConfig, RewardModelRunConfig
from services.trainer.offline.reward_model.member import Member, load_member, train_member
from services.trainer.offline.reward_model.plot import plot_report
from services.trainer.offline.reward_model.report import (
    HeldoutPairs,
    MemberReport,
    RewardModelReport,
    describe_ensemble,
    describe_heldout,
    mean_scores,
    measure_scores,
    probabilities,
    show_report,
    write_report,
)
from services.trainer.offline.reward_model.task import score_groups
from services.trainer.state.run_dir import locked
from services.trainer.telemetry.terminal import say

PLOT_FILE = "reward_model_report.png"


@dataclass(frozen=True, slots=True)
class _Data:
    train: list[PreferenceGroup]
    heldout: list[PreferenceGroup]
    skipped: dict[str, int]
    max_tokens: int


def train_reward_model(config: RewardModelRunConfig, *, resume: bool, console: Console) -> int:
    """Trains to the end as run_reward_model(); returns the exit code: 0, or 128 + a signal's number if one stopped it.

    Raises: ConfigError or RunError as run_reward_model().
    """
    disable_progress_bar()  # every model that is loaded or written would show one
    try:
        run_reward_model(config, resume=resume, console=console)
    except StoppedError as stopped:
        return stopped.exit_code
    return 0


def run_reward_model(config: RewardModelRunConfig, *, console: Console, resume: bool = False) -> RewardModelReport:
    """Trains, measures, normalises and saves a reward model or an ensemble; every rank of torchrun calls it.

    Args:
        resume: go on where the run in this directory stopped; members that are finished are not trained again.
    Returns: the report that is also written to the run.
    Raises: ConfigError for a model, data or directory that cannot be used; RunError, naming the step, for a loss or
        gradient that is not finite, or a disk that is full; StoppedError if a signal stopped the training before its
        end.
    """
    started = time.monotonic()
    require_model_folder(config.model.path)
    configure_logging("warning", "trainer")
    keep_freed_memory()
    ranks = join_ranks()
    console = console if ranks.is_main else Console(quiet=True)
    with locked(config.run_dir) if ranks.is_main else contextlib.nullcontext():
        return _run(config, console, resume, ranks, started)


def _run(
    config: RewardModelRunConfig, console: Console, resume: bool, ranks: Ranks, started: float
) -> RewardModelReport:
    members = [Member(index, config) for index in range(config.ensemble.members)]
    finished = [member for member in members if member.model_path.exists()]
    if finished and not resume:
        raise ConfigError(
            f"run_dir is '{config.run_dir}': it holds a trained {finished[0].model_path.name} already; go on with "
            "--resume, or choose another directory"
        )
    tokenizer = load_tokenizer(config.model.path)
    data = _load_data(config, tokenizer)
    for reason, count in sorted(data.skipped.items()):
        say(console, f"{count} pairs left out: {reason} (a side may have {data.max_tokens} tokens)")
    for member in members:
        facts = member.facts()
        if facts is not None:
            member.require_same(facts, data.train)
            say(console, f"{member.title}: finished already")
        else:
            train_member(member, data.train, data.heldout, tokenizer, console=console, resume=resume, ranks=ranks)
    report = _measure(members, data, ranks, started)
    if ranks.is_main:
        _write(config, report)
        show_report(report, console)
        say(console, f"saved {', '.join(str(member.model_path) for member in members)}")
    return report


def _write(config: RewardModelRunConfig, report: RewardModelReport) -> None:
    try:
        write_report(config.run_dir, report)
        if report.heldout is not None:
            plot_report(report, config.run_dir / PLOT_FILE)
    except OSError as error:
        raise RunError(
            f"could not write the report to {config.run_dir}: {error}; free some space, then write it with --resume"
        ) from error


def _load_data(config: RewardModelRunConfig, tokenizer: PreTrainedTokenizerBase) -> _Data:
    data = config.data
    # What the model has no positions for it cannot be served with either.
    max_tokens = min(data.max_tokens, max_positions(config.model.path))
    loaded = load_preferences(data.path, tokenizer, max_tokens=max_tokens, split=data.split)
    groups = _grouped(loaded, data)
    if data.heldout_path is None:
        train, heldout = split_by_prompt(groups, data.heldout_fraction, config.training.seed)
        return _Data(train, heldout, loaded.skipped, max_tokens)
    other = load_preferences(
        data.heldout_path,
        tokenizer,
        max_tokens=max_tokens,
        split=data.heldout_split,
        field="data.heldout_path",
    )
    heldout = _grouped(other, data)
    shared = {group.prompt_ids for group in groups} & {group.prompt_ids for group in heldout}
    if shared:
        raise ConfigError(
            f"data.heldout_path is '{data.heldout_path}': {len(shared)} of its prompts are in data.path too, so it "
            "would measure what was trained on; take them out of one of the two"
        )
    reasons = loaded.skipped.keys() | other.skipped.keys()
    skipped = {reason: loaded.skipped.get(reason, 0) + other.skipped.get(reason, 0) for reason in reasons}
    return _Data(groups, heldout, skipped, max_tokens)


def _grouped(preferences: Preferences, config: PreferencesConfig) -> list[PreferenceGroup]:
    return merge_by_prompt(preferences.groups) if config.group_by_prompt else preferences.groups


def _measure(members: Sequence[Member], data: _Data, ranks: Ranks, started: float) -> RewardModelReport:
    """Returns the report on members that are saved, one of them in memory at a time. Every rank calls it."""
    pairs = HeldoutPairs.of(data.heldout)
    micro_batch_tokens = members[0].config.training.micro_batch_tokens
    scores, predicted, reports = list[list[float]](), list[list[float]](), list[MemberReport]()
    for member in members:
        facts = member.facts()
        assert facts is not None  # it was trained just now, or found finished
        if data.heldout:
            scores.append(score_groups(load_member(member), data.heldout, max_tokens=micro_batch_tokens, ranks=ranks))
        else:
            scores.append([])
        predicted.append(probabilities(pairs, scores[-1], facts.reward_std))
        reports.append(
            MemberReport(
                model=member.model_path.name,
                train_loss=facts.train_loss,
                train_accuracy=facts.train_accuracy,
                reward_mean=facts.reward_mean,
                reward_std=facts.reward_std,
                heldout=measure_scores(pairs, scores[-1], predicted[-1]),
            )
        )
    mean, probability = mean_scores(scores), mean_scores(predicted)
    whole = measure_scores(pairs, mean, probability)
    return RewardModelReport(
        num_train_prompts=len(data.train),
        num_train_pairs=sum(len(group.choices) for group in data.train),
        num_heldout_pairs=len(pairs.choices),
        num_undecided_pairs=len(pairs.choices) - len(pairs.decided),
        skipped=data.skipped,
        train_loss=fmean(each.train_loss for each in reports),
        train_accuracy=fmean(each.train_accuracy for each in reports),
        heldout_accuracy=whole.accuracy,
        heldout_accuracy_low=whole.accuracy_low,
        heldout_accuracy_high=whole.accuracy_high,
        calibration_error=whole.calibration_error,
        length_correlation=whole.length_correlation,
        length_rank_correlation=whole.length_rank_correlation,
        members=reports,
        ensemble=describe_ensemble(pairs, scores) if len(members) > 1 else None,
        heldout=describe_heldout(pairs, mean, probability) if data.heldout else None,
        seconds=time.monotonic() - started,
    )
