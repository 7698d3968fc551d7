"""The picture of a reward model's report: calibration, accuracy, scores, and for an ensemble what its members say."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from services.trainer.offline.reward_model.accuracy import AccuracyBin, wilson_interval
from services.trainer.offline.reward_model.report import Heldout, RewardModelReport

INK, GRID = "#475569", "#94a3b855"
BLUE, ORANGE, GREEN, PURPLE = "#3b82f6", "#f97316", "#10b981", "#a855f7"
PANEL_INCHES = (4.6, 3.6)
NUM_HISTOGRAM_BINS = 30

Draw = Callable[[Any], None]


def plot_report(report: RewardModelReport, path: Path) -> None:
    """Writes a report that has held-out pairs as a PNG."""
    # Imported here: it takes a second to load. This way of use needs no display and keeps no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    panels = _panels(report)
    columns = 2 if len(panels) <= 4 else 3 if len(panels) <= 6 else 4
    rows = math.ceil(len(panels) / columns)
    size = (PANEL_INCHES[0] * columns, PANEL_INCHES[1] * rows + 0.4)
    figure = Figure(figsize=size, dpi=130, layout=ConstrainedLayoutEngine(hspace=0.06, wspace=0.05))
    figure.suptitle(_headline(report), color=INK, fontsize=12, fontweight="bold", x=0.01, ha="left")
    for number, (title, draw) in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, number)
        draw(axes)
        _dress(axes, title)
    FigureCanvasAgg(figure).print_png(path)


def _panels(report: RewardModelReport) -> list[tuple[str, Draw]]:
    heldout, ensemble = report.heldout, report.ensemble
    assert heldout is not None
    panels: list[tuple[str, Draw]] = [
        (f"Calibration: expected error {report.calibration_error:.3f}", lambda axes: _reliability(axes, heldout)),
        (
            "Accuracy by score difference",
            lambda axes: _accuracies(axes, heldout.accuracy_by_score_difference, "|score difference|, normalised"),
        ),
        ("Scores", lambda axes: _histogram(axes, heldout)),
        ("Score and length", lambda axes: _lengths(axes, report, heldout)),
    ]
    if heldout.accuracy_by_margin:
        panels.append(
            ("Accuracy by margin", lambda axes: _accuracies(axes, heldout.accuracy_by_margin, "labelled margin"))
        )
    if ensemble is not None:
        panels += [
            ("Members, and their mean", lambda axes: _members(axes, report)),
            (
                "Accuracy by disagreement",
                lambda axes: _accuracies(
                    axes, ensemble.accuracy_by_disagreement, "std of the score difference over members"
                ),
            ),
        ]
    return panels


def _headline(report: RewardModelReport) -> str:
    name = "Reward model" if report.ensemble is None else f"Ensemble of {len(report.members)} reward models"
    if report.heldout_accuracy is None:
        return f"{name}: {report.num_heldout_pairs} held-out pairs"
    return (
        f"{name}: {report.heldout_accuracy:.1%} of {report.num_heldout_pairs} held-out pairs right "
        f"(95 % interval {report.heldout_accuracy_low:.1%} to {report.heldout_accuracy_high:.1%})"
    )


def _reliability(axes: Any, heldout: Heldout) -> None:
    bins = heldout.reliability
    most = max(each.count for each in bins)
    axes.plot([0.5, 1.0], [0.5, 1.0], color=INK, linewidth=1, linestyle="--", label="perfect")
    for each in bins:
        low, high = wilson_interval(each.accuracy, each.count)
        axes.plot([each.confidence] * 2, [low, high], color=BLUE, linewidth=1.2, alpha=0.5)
    axes.scatter(
        [each.confidence for each in bins],
        [each.accuracy for each in bins],
        s=[12 + 120 * each.count / most for each in bins],
        color=BLUE,
        label="bin, 95 % (area: its pairs)",
        zorder=3,
        clip_on=False,
    )
    axes.set(xlim=(0.49, 1.01), ylim=(-0.02, 1.04))
    axes.set_xlabel("predicted probability of the predicted winner")
    axes.set_ylabel("how often it won")
    axes.legend(frameon=False, fontsize=8, loc="best", labelcolor=INK)


def _accuracies(axes: Any, bins: Sequence[AccuracyBin], label: str) -> None:
    _intervals(
        axes,
        [_range(each) for each in bins],
        [each.accuracy for each in bins],
        [(each.accuracy_low, each.accuracy_high) for each in bins],
        [GREEN] * len(bins),
    )
    for place, each in enumerate(bins):
        axes.annotate(
            f"n={each.count}", (place, 0), (0, 3), xycoords=("data", "axes fraction"), textcoords="offset points",
            ha="center", fontsize=7, color=INK,
        )  # fmt: skip
    axes.set_xlabel(label)


def _members(axes: Any, report: RewardModelReport) -> None:
    measured = [(each.model.removeprefix("model-"), each.heldout, BLUE) for each in report.members]
    names = [f"member {name}" for name, _, _ in measured]
    accuracies = [each.accuracy or 0.0 for _, each, _ in measured]
    intervals = [(each.accuracy_low or 0.0, each.accuracy_high or 0.0) for _, each, _ in measured]
    names.append("mean")
    accuracies.append(report.heldout_accuracy or 0.0)
    intervals.append((report.heldout_accuracy_low or 0.0, report.heldout_accuracy_high or 0.0))
    _intervals(axes, names, accuracies, intervals, [BLUE] * len(measured) + [PURPLE])
    if report.ensemble is not None:
        _note(axes, f"mean disagreement {report.ensemble.mean_disagreement:.2f} std", "lower right")


def _intervals(
    axes: Any,
    names: Sequence[str],
    accuracies: Sequence[float],
    intervals: Sequence[tuple[float, float]],
    colors: Sequence[str],
) -> None:
    """Draws each accuracy with its interval, over its name."""
    for place, (accuracy, (low, high), color) in enumerate(zip(accuracies, intervals, colors, strict=True)):
        axes.errorbar(
            place, accuracy, yerr=[[accuracy - low], [high - accuracy]], fmt="o", color=color, capsize=4, linewidth=1.5
        )
    axes.axhline(0.5, color=INK, linewidth=1, linestyle="--")
    lowest = min(low for low, _ in intervals)
    axes.set(xlim=(-0.6, len(names) - 0.4), ylim=(max(-0.02, min(0.4, lowest - 0.08)), 1.02))
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("share ranked right, 95 %")


def _histogram(axes: Any, heldout: Heldout) -> None:
    everything = [*heldout.chosen_scores, *heldout.rejected_scores]
    span = (min(everything), max(everything))
    for scores, label, color in (
        (heldout.rejected_scores, "rejected", ORANGE),
        (heldout.chosen_scores, "chosen", BLUE),
    ):
        axes.hist(scores, bins=NUM_HISTOGRAM_BINS, range=span, color=color, alpha=0.55, label=label)
    axes.set_xlabel("score, normalised")
    axes.set_ylabel("sides of pairs")
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)


def _lengths(axes: Any, report: RewardModelReport, heldout: Heldout) -> None:
    axes.scatter(heldout.lengths, heldout.scores, s=10, color=PURPLE, alpha=0.4, linewidths=0)
    axes.set_xlabel("completion length, tokens")
    axes.set_ylabel("score, normalised")
    if report.length_correlation is not None and report.length_rank_correlation is not None:
        text = f"Pearson {report.length_correlation:+.2f}, Spearman {report.length_rank_correlation:+.2f}"
        axes.margins(y=0.15)
        _note(axes, text, "upper right")


def _range(each: AccuracyBin) -> str:
    if each.low == each.high:
        return f"{each.low:g}"
    return f"{each.low:.2f}\nto {each.high:.2f}"


def _note(axes: Any, text: str, corner: str) -> None:
    vertical, horizontal = corner.split()
    x, y = {"left": 0.03, "right": 0.97}[horizontal], {"lower": 0.04, "upper": 0.96}[vertical]
    va = {"lower": "bottom", "upper": "top"}[vertical]
    axes.text(x, y, text, transform=axes.transAxes, ha=horizontal, va=va, fontsize=8, color=INK)


def _dress(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left", color=INK, fontsize=10, fontweight="bold")
    axes.tick_params(colors=INK, labelsize=8)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=INK, fontsize=9)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GRID)
