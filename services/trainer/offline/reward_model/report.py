"""How good a reward model, or an ensemble of them, is: on pairs it has not seen, and what its scores go with."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, pstdev

from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table

from rlhf.data.preferences import Choice, PreferenceGroup
from rlhf.statistics import pearson, sigmoid, spearman
from services.trainer.offline.reward_model.accuracy import (
    AccuracyBin,
    ConfidenceBin,
    accuracy_bin,
    accuracy_bins,
    confidence_bins,
    expected_calibration_error,
    hit,
)
from services.trainer.telemetry.terminal import say

REPORT_FILE = "reward_model_report.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measures:
    """What was measured on held-out pairs. None, or empty, where there are none to measure it on."""

    accuracy: float | None
    """Share of the pairs whose preferred side scores higher; equal scores count half. Pairs with a soft label of
    exactly 0.5 have no right answer and are left out."""
    accuracy_low: float | None
    """Lower end of its 95 % interval (Wilson), which takes pairs for independent draws."""
    accuracy_high: float | None
    """Upper end of it."""
    calibration_error: float | None
    """Expected calibration error of sigmoid(score difference before normalisation), where Bradley-Terry is defined."""
    length_correlation: float | None
    """Pearson correlation of score and completion length in tokens; None if either is constant."""
    length_rank_correlation: float | None
    """Spearman's, which sees any monotone dependence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberReport:
    """One trained model."""

    model: str
    """Its folder in the run's directory."""
    train_loss: float
    """Mean loss over the last epoch, as it was trained on, in nats per pair (log 2 at random)."""
    train_accuracy: float
    """Share of the last epoch's pairs that were ranked right before they were trained on."""
    reward_mean: float
    """Mean score of the training completions before normalisation; it is subtracted from every score served."""
    reward_std: float
    """Their standard deviation; every score served is divided by it."""
    heldout: Measures


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleReport:
    """What several members are together."""

    accuracy_by_rule: dict[str, float]
    """Held-out accuracy of each rule that the reward service can combine them by; std_coef is 1."""
    mean_disagreement: float
    """Mean over held-out completions of the standard deviation of the members' normalised scores."""
    accuracy_by_disagreement: list[AccuracyBin]
    """Accuracy of the half of the pairs on whose score difference the members agree more, then of the other half; if
    the first is higher, disagreement shows where the ensemble errs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heldout:
    """Everything about held-out pairs that is more than a number; for an ensemble, of its mean."""

    accuracy_by_score_difference: list[AccuracyBin]
    """By |difference| of the normalised scores."""
    accuracy_by_margin: list[AccuracyBin]
    """By the labelled margin; empty if no pair has one."""
    reliability: list[ConfidenceBin]
    chosen_scores: list[float]
    """Normalised score of the preferred side of every pair."""
    rejected_scores: list[float]
    """Of the other side."""
    lengths: list[int]
    """Of every held-out completion, in tokens."""
    scores: list[float]
    """Normalised score of the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardModelReport:
    """What a training led to. Numbers that need held-out pairs are None where there are none."""

    num_train_prompts: int
    """Batch elements: pairs or rankings."""
    num_train_pairs: int
    num_heldout_pairs: int
    num_undecided_pairs: int
    """Held-out pairs with a soft label of exactly 0.5; no part of any accuracy."""
    skipped: dict[str, int]
    """Pairs left out of training and measuring, by reason."""
    train_loss: float
    """Mean over the members."""
    train_accuracy: float
    """Mean over the members."""
    heldout_accuracy: float | None
    """Of the model, or of the members' mean; as in Measures."""
    heldout_accuracy_low: float | None
    heldout_accuracy_high: float | None
    calibration_error: float | None
    """An ensemble's probability is the mean of its members'."""
    length_correlation: float | None
    length_rank_correlation: float | None
    members: list[MemberReport]
    """At least one."""
    ensemble: EnsembleReport | None
    """None for a single model."""
    heldout: Heldout | None
    """None if no pair was held out."""
    seconds: float
    """Wall time of this process, loading included."""


@dataclass(frozen=True, slots=True)
class HeldoutPairs:
    """Held-out groups, laid flat."""

    lengths: list[int]
    """[N], of each completion in tokens."""
    choices: list[Choice]
    """With indices into them."""

    @classmethod
    def of(cls, groups: Sequence[PreferenceGroup]) -> "HeldoutPairs":
        """Returns the completions of the groups one after the other, and all choices."""
        lengths: list[int] = []
        choices: list[Choice] = []
        for group in groups:
            start = len(lengths)
            lengths += [len(completion) for completion in group.completions]
            choices += [
                Choice(start + each.chosen, start + each.rejected, each.target, each.margin) for each in group.choices
            ]
        return cls(lengths, choices)

    @property
    def decided(self) -> list[Choice]:
        """The choices that have a right answer."""
        return [choice for choice in self.choices if choice.target != 0.5]


def probabilities(pairs: HeldoutPairs, scores: Sequence[float], reward_std: float) -> list[float]:
    """Returns the model's probability, for each choice, that its chosen side is preferred.

    Args:
        scores: [N], normalised; reward_std: what they were divided by. Bradley-Terry is about the scores before.
    """
    return [sigmoid((scores[each.chosen] - scores[each.rejected]) * reward_std) for each in pairs.choices]


def measure_scores(pairs: HeldoutPairs, scores: Sequence[float], predicted: Sequence[float]) -> Measures:
    """Returns the measures of scores [N] and of the predicted probability of each choice."""
    decided = pairs.decided
    differences = [scores[each.chosen] - scores[each.rejected] for each in decided]
    whole = accuracy_bin([0.0] * len(decided), [hit(each) for each in differences]) if decided else None
    bins = confidence_bins(predicted, [each.target for each in pairs.choices])
    return Measures(
        accuracy=whole.accuracy if whole else None,
        accuracy_low=whole.accuracy_low if whole else None,
        accuracy_high=whole.accuracy_high if whole else None,
        calibration_error=expected_calibration_error(bins) if bins else None,
        length_correlation=pearson(scores, pairs.lengths),
        length_rank_correlation=spearman(scores, pairs.lengths),
    )


def describe_heldout(pairs: HeldoutPairs, scores: Sequence[float], predicted: Sequence[float]) -> Heldout:
    """Returns bins, diagram and scores; the arguments are those of measure_scores."""
    decided = pairs.decided
    differences = [scores[each.chosen] - scores[each.rejected] for each in decided]
    hits = [hit(each) for each in differences]
    margins = [each.margin for each in decided]
    return Heldout(
        accuracy_by_score_difference=accuracy_bins([abs(each) for each in differences], hits),
        accuracy_by_margin=accuracy_bins(margins, hits) if any(margins) else [],
        reliability=confidence_bins(predicted, [each.target for each in pairs.choices]),
        chosen_scores=[scores[each.chosen] for each in pairs.choices],
        rejected_scores=[scores[each.rejected] for each in pairs.choices],
        lengths=pairs.lengths,
        scores=list(scores),
    )


def describe_ensemble(pairs: HeldoutPairs, member_scores: Sequence[Sequence[float]]) -> EnsembleReport | None:
    """Returns what the members' scores [members, N] are together; None if no pair has a right answer."""
    decided = pairs.decided
    if not decided:
        return None
    columns = list(zip(*member_scores, strict=True))
    spreads = [pstdev(column) for column in columns]
    means = [fmean(column) for column in columns]
    combined = {
        "mean": means,
        "worst": [min(column) for column in columns],
        "mean_minus_std": [mean - spread for mean, spread in zip(means, spreads, strict=True)],
    }
    hits = {rule: [hit(s[each.chosen] - s[each.rejected]) for each in decided] for rule, s in combined.items()}
    disagreements = [
        pstdev([scores[each.chosen] - scores[each.rejected] for scores in member_scores]) for each in decided
    ]
    return EnsembleReport(
        accuracy_by_rule={rule: fmean(each) for rule, each in hits.items()},
        mean_disagreement=fmean(spreads),
        accuracy_by_disagreement=accuracy_bins(disagreements, hits["mean"], num_bins=2),
    )


def mean_scores(member_scores: Sequence[Sequence[float]]) -> list[float]:
    """Returns the mean over members [members, N] of each score, [N]."""
    return [fmean(column) for column in zip(*member_scores, strict=True)]


def write_report(run_dir: Path, report: RewardModelReport) -> None:
    """Writes the report as JSON."""
    (run_dir / REPORT_FILE).write_text(json.dumps(asdict(report), indent=1) + "\n", encoding="utf-8")


def read_report(run_dir: Path) -> RewardModelReport:
    """Returns what write_report wrote."""
    values: Mapping[str, object] = json.loads((run_dir / REPORT_FILE).read_text(encoding="utf-8"))
    return TypeAdapter(RewardModelReport).validate_python(values)


CAPTION = (
    "train, held out: accuracy · ECE: expected calibration error · length r, rank r: Pearson's and Spearman's "
    "correlation of score and completion length"
)


def show_report(report: RewardModelReport, console: Console) -> None:
    """Prints the report: the models, then accuracy by score difference, labelled margin and disagreement."""
    table = Table(title=_title(report), title_justify="left", caption=CAPTION, caption_justify="left")
    for heading in ("model", "train", "held out", "95 %", "ECE", "length r", "rank r"):
        table.add_column(heading, justify="left" if heading == "model" else "right", no_wrap=True)
    for member in report.members:
        table.add_row(member.model, f"{member.train_accuracy:.1%}", *_measures(member.heldout))
    if report.ensemble is not None:
        table.add_row("their mean", f"{report.train_accuracy:.1%}", *_measures(_whole(report)), style="bold")
    console.print(table)
    if report.heldout is not None:
        _show_bins("|score difference|", report.heldout.accuracy_by_score_difference, console)
        _show_bins("labelled margin", report.heldout.accuracy_by_margin, console)
    if report.ensemble is not None:
        rules = ", ".join(f"{rule} {accuracy:.1%}" for rule, accuracy in report.ensemble.accuracy_by_rule.items())
        _show_bins("disagreement of the members", report.ensemble.accuracy_by_disagreement, console)
        say(console, f"accuracy by rule: {rules}; mean disagreement {report.ensemble.mean_disagreement:.3f} std")
    if report.num_undecided_pairs:
        say(console, f"{report.num_undecided_pairs} held-out pairs are undecided (soft label 0.5): in no accuracy")


def _title(report: RewardModelReport) -> str:
    return (
        f"{report.num_train_pairs} training pairs of {report.num_train_prompts} examples, "
        f"{report.num_heldout_pairs} held-out pairs"
    )


def _whole(report: RewardModelReport) -> Measures:
    return Measures(
        accuracy=report.heldout_accuracy,
        accuracy_low=report.heldout_accuracy_low,
        accuracy_high=report.heldout_accuracy_high,
        calibration_error=report.calibration_error,
        length_correlation=report.length_correlation,
        length_rank_correlation=report.length_rank_correlation,
    )


def _measures(measures: Measures) -> Sequence[str]:
    interval = "-" if measures.accuracy_low is None else f"{measures.accuracy_low:.1%} to {measures.accuracy_high:.1%}"
    return (
        _number(measures.accuracy, "{:.1%}"),
        interval,
        _number(measures.calibration_error, "{:.3f}"),
        _number(measures.length_correlation, "{:+.2f}"),
        _number(measures.length_rank_correlation, "{:+.2f}"),
    )


def _show_bins(key: str, bins: Sequence[AccuracyBin], console: Console) -> None:
    if not bins:
        return
    table = Table(title=f"held-out accuracy by {key}", title_justify="left")
    for heading in (key, "pairs", "accuracy", "95 %"):
        table.add_column(heading, justify="right")
    for each in bins:
        span = f"{each.low:.2f}" if each.low == each.high else f"{each.low:.2f} to {each.high:.2f}"
        interval = f"{each.accuracy_low:.1%} to {each.accuracy_high:.1%}"
        table.add_row(span, str(each.count), f"{each.accuracy:.1%}", interval)
    console.print(table)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
