"""The demo's report: one HTML file that needs nothing else, with curves as inline SVG."""

import io
import json
from collections.abc import Callable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from rlhf_cli.demo.results import DemoResults, verdict
from rlhf_cli.pipeline.actions import TRAINING_REWARD, TRUE_SCORE
from rlhf_cli.pipeline.config import PipelineConfig

REPORT_FILE = "report.html"
NUM_SAMPLES = 12
INK, GRID = "#64748b", "#94a3b840"
BLUE, ORANGE, GREEN, PURPLE = "#3b82f6", "#f97316", "#10b981", "#a855f7"

Rows = Sequence[dict[str, float]]


def write_report(config: PipelineConfig, results: DemoResults) -> None:
    """Writes the report of a finished demo to its run's directory."""
    ppo, reward_model = (read_metrics(config.run_dir / name / "run/metrics.jsonl") for name in ("ppo", "reward_model"))
    template = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    ).from_string(files("rlhf_cli.demo").joinpath("report.html.j2").read_text(encoding="utf-8"))
    html = template.render(
        config=config,
        num_steps=len(ppo),
        results=results,
        verdict=verdict(results),
        measures=results.measures(),
        samples=results.samples(NUM_SAMPLES),
        true_score=TRUE_SCORE,
        training_reward=TRAINING_REWARD,
        charts=[*ppo_charts(ppo), score_histogram(results)],
        reward_model_charts=reward_model_charts(reward_model),
        total_seconds=sum(results.phase_seconds.values()),
    )
    (config.run_dir / REPORT_FILE).write_text(html, encoding="utf-8")


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Returns the rows of a metrics.jsonl, oldest first."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def ppo_charts(rows: Rows) -> list[Markup]:
    """Returns the curves of the PPO run."""
    return [
        _chart("Reward", "reward-model score, mean ± std", lambda axes: _band(axes, rows, "reward_mean", "reward_std")),
        _chart("KL to the reference", "nats per completion", lambda axes: _line(axes, rows, "kl", ORANGE)),
        _chart("Entropy", "nats per token", lambda axes: _line(axes, rows, "entropy", PURPLE)),
        _chart("Critic", "explained variance", lambda axes: _line(axes, rows, "value_explained_variance", GREEN)),
        _chart("Length", "tokens per completion", lambda axes: _line(axes, rows, "completion_tokens_mean", BLUE)),
        _chart(
            "Sampler and trainer", "|Δ log-probability|, nats", lambda axes: _line(axes, rows, "sampler_mismatch", INK)
        ),
        _chart("Time", "seconds of each step", lambda axes: _seconds(axes, rows)),
    ]


def reward_model_charts(rows: Rows) -> list[Markup]:
    """Returns the curves of the reward model's training."""
    return [
        _chart("Loss", "nats per pair, before the update", lambda axes: _line(axes, rows, "loss", ORANGE)),
        _chart("Pairs ranked right", "share, before the update", lambda axes: _line(axes, rows, "accuracy", GREEN)),
    ]


def score_histogram(results: DemoResults) -> Markup:
    """Returns the distribution of the true score over completions, before and after."""

    def draw(axes: Any) -> None:
        for evaluation, label, color in ((results.before, "before", INK), (results.after, "after", BLUE)):
            scores = [row.rewards[TRUE_SCORE] for row in evaluation.rows]
            axes.hist(scores, bins=20, range=(-1, 1), color=color, alpha=0.55, label=label)
        axes.legend(frameon=False, labelcolor=INK, fontsize=8)
        axes.set_xlabel("true score", color=INK, fontsize=8)

    return _chart("True score, held out", "completions", draw)


def _line(axes: Any, rows: Rows, name: str, color: str) -> None:
    axes.plot([row["step"] for row in rows], [row[name] for row in rows], color=color, linewidth=1.8)
    _label_steps(axes)


def _band(axes: Any, rows: Rows, mean: str, std: str) -> None:
    steps = [row["step"] for row in rows]
    low, high = ([row[mean] + sign * row[std] for row in rows] for sign in (-1, 1))
    axes.fill_between(steps, low, high, color=BLUE, alpha=0.15, linewidth=0)
    _line(axes, rows, mean, BLUE)


def _seconds(axes: Any, rows: Rows) -> None:
    """Draws the parts of a step on top of one another; what is above them is waiting and bookkeeping."""
    steps = [row["step"] for row in rows]
    parts = (
        ("generate_seconds", "generate", BLUE),
        ("update_seconds", "update", ORANGE),
        ("fleet_push_seconds", "push", GREEN),
    )
    base = [0.0] * len(rows)
    for name, label, color in parts:
        heights = [row[name] for row in rows]
        axes.bar(steps, heights, bottom=base, color=color, label=label, width=0.8)
        base = [low + height for low, height in zip(base, heights, strict=True)]
    axes.plot(steps, [row["step_seconds"] for row in rows], color=INK, linewidth=1.2, label="step")
    axes.legend(frameon=False, labelcolor=INK, fontsize=7, ncols=2)
    _label_steps(axes)


def _label_steps(axes: Any) -> None:
    axes.set_xlabel("step", color=INK, fontsize=8)
    axes.xaxis.get_major_locator().set_params(integer=True)


def _chart(title: str, unit: str, draw: Callable[[Any], None]) -> Markup:
    """Returns a small chart as an SVG element without a background, so that it fits a light and a dark page."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif"}):
        figure = Figure(figsize=(4.4, 2.5), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.set_title(title, loc="left", color=INK, fontsize=10, fontweight="bold")
        axes.set_ylabel(unit, color=INK, fontsize=8)
        axes.tick_params(colors=INK, labelsize=8)
        axes.grid(color=GRID, linewidth=0.6)
        axes.set_axisbelow(True)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(GRID)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    return Markup(svg[svg.index("<svg") :])
