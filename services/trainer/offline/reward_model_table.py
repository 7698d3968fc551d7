"""A reward model's report for the terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from services.trainer.offline.pair_statistics import AccuracyBin
from services.trainer.offline.reward_model.report import Measures, RewardModelReport

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
        _say(console, f"accuracy by rule: {rules}; mean disagreement {report.ensemble.mean_disagreement:.3f} std")
    if report.num_undecided_pairs:
        _say(console, f"{report.num_undecided_pairs} held-out pairs are undecided (soft label 0.5): in no accuracy")


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


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
