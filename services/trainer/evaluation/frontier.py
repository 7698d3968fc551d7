"""The reward-KL frontier: what each trained policy earns, and how far it went from the reference for it.

Rafailov et al. 2023, arXiv:2305.18290, figure 2 left: reward against KL for several algorithms, each with several
strengths of its KL penalty. The better algorithm earns more at the same KL.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.errors import ConfigError
from rlhf.statistics import MeanWithInterval

START = "start"
"""The family of the policy that training began with."""
NAME = re.compile(r"(?P<family>[^:@\s]+)(?::(?P<coefficient>[0-9.eE+-]+))?(?:@(?P<step>\d+))?")
COEFFICIENT_NAMES = {"dpo": "beta"}
DEFAULT_COEFFICIENT_NAME = "kl_coef"
HEADINGS = ("policy", "KL, nats/completion", "score", "training reward", "tokens")
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P")


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontierPoint:
    """One policy."""

    family: str
    """Which algorithm made it, such as "ppo" or "dpo"; "start" for the policy before training."""
    coefficient: float | None
    """The strength of its KL penalty: kl_coef, or DPO's beta."""
    step: int | None
    """Of the run it was taken at; None for the run's end."""
    kl: MeanWithInterval
    """To the reference, in nats per completion."""
    score: MeanWithInterval
    """By the scorer that training did not see."""
    training_reward: MeanWithInterval | None
    """By the reward model that it was trained against, if it was asked."""
    num_tokens: float
    """Mean length of the completions."""

    @property
    def label(self) -> str:
        """Returns a short name for table and plot, such as "dpo, beta 0.1"."""
        what = COEFFICIENT_NAMES.get(self.family, DEFAULT_COEFFICIENT_NAME)
        parts = [self.family]
        if self.coefficient is not None:
            parts.append(f"{what} {self.coefficient:g}")
        if self.step is not None:
            parts.append(f"step {self.step}")
        return ", ".join(parts)


def read_points(files: Sequence[Path], *, score: str, training_reward: str) -> list[FrontierPoint]:
    """Returns the policies in the summary.json files of evaluations, sorted by family and KL, the start first.

    Their names say what they are: FAMILY[:COEFFICIENT][@STEP], such as start, dpo:0.1 or ppo:0.03@14. A name that
    stands in several files counts once, as the first has it.

    Args:
        score: name of the reward service that gives the frontier's height.
        training_reward: name of the one that was trained against; it may be missing.
    Raises: ConfigError for a file that is no such summary, a name that says nothing, or a score that is not there.
    """
    points: dict[str, FrontierPoint] = {}
    for file in files:
        try:
            evaluations = json.loads(file.read_text(encoding="utf-8"))["evaluations"].items()
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise ConfigError(
                f"{file}: not the summary of an evaluation; write one with `rlhf eval --out DIR`"
            ) from None
        for name, evaluation in evaluations:
            points.setdefault(name, _point(name, evaluation["summary"], score, training_reward, file))
    return sorted(points.values(), key=lambda point: (point.family != START, point.family, point.kl.mean))


def table_rows(points: Sequence[FrontierPoint]) -> list[list[str]]:
    """Returns the cells of the table, a row for each policy, under HEADINGS."""
    return [
        [
            point.label,
            point.kl.format("{:.2f}"),
            point.score.format("{:.3f}"),
            "" if point.training_reward is None else point.training_reward.format("{:+.2f}"),
            f"{point.num_tokens:.1f}",
        ]
        for point in points
    ]


def markdown_table(points: Sequence[FrontierPoint]) -> str:
    """Returns the table as Markdown."""
    lines = [HEADINGS, ("---", *("---:" for _ in HEADINGS[1:])), *table_rows(points)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def plot_frontier(points: Sequence[FrontierPoint], path: Path, *, score: str) -> None:
    """Writes the plot as PNG: KL to the right, the score upwards, 95 % intervals as bars, a colour for each family."""
    # Imported here: it takes a second to load. This way of use needs no display and keeps no global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 5.0), dpi=150, layout="constrained")
    axes = figure.subplots()
    families = [family for family in dict.fromkeys(point.family for point in points) if family != START]
    for index, family in enumerate(families):
        members = [point for point in points if point.family == family]
        _draw(axes, members, family, COLORS[index % len(COLORS)], MARKERS[index % len(MARKERS)], joined=True)
    _draw(axes, [point for point in points if point.family == START], START, "black", "*", joined=False)
    axes.set_xlabel("KL to the reference, nats per completion")
    axes.set_ylabel(f"score by '{score}', mean over completions")
    axes.margins(x=0.12)  # room for what stands beside the last point
    axes.grid(alpha=0.25)
    axes.legend(loc="best", frameon=False)
    FigureCanvasAgg(figure).print_png(path)


def _draw(axes: Any, points: Sequence[FrontierPoint], family: str, color: str, marker: str, *, joined: bool) -> None:
    """Draws the policies of one family with their intervals, a line through them, and what each is beside it."""
    if not points:
        return
    axes.errorbar(
        [point.kl.mean for point in points],
        [point.score.mean for point in points],
        xerr=[point.kl.half_width or 0.0 for point in points],
        yerr=[point.score.half_width or 0.0 for point in points],
        color=color,
        marker=marker,
        markersize=12 if family == START else 7,
        linestyle="-" if joined else "none",
        linewidth=1.0,
        elinewidth=1.0,
        capsize=3,
        label=family,
    )
    for point in points:
        text = point.label.removeprefix(f"{family}, ")
        place = (point.kl.mean, point.score.mean)
        axes.annotate(text, place, xytext=(7, -11), textcoords="offset points", fontsize=8, color=color)


def _point(name: str, summary: dict[str, Any], score: str, training_reward: str, file: Path) -> FrontierPoint:
    parts = NAME.fullmatch(name)
    if parts is None:
        raise ConfigError(f"{file}: '{name}' is no name of the form FAMILY[:COEFFICIENT][@STEP], such as ppo:0.03@14")
    if f"reward/{score}" not in summary:
        known = ", ".join(key.removeprefix("reward/") for key in summary if key.startswith("reward/")) or "none"
        raise ConfigError(f"{file}: '{name}' has no score by '{score}'; it has: {known}")
    coefficient, step = parts["coefficient"], parts["step"]
    training = summary.get(f"reward/{training_reward}")
    return FrontierPoint(
        family=parts["family"],
        coefficient=None if coefficient is None else float(coefficient),
        step=None if step is None else int(step),
        kl=MeanWithInterval(**summary["kl"]),
        score=MeanWithInterval(**summary[f"reward/{score}"]),
        training_reward=None if training is None else MeanWithInterval(**training),
        num_tokens=float(summary["num_tokens"]["mean"]),
    )
