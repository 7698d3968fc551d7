"""What the demo found: before and after, side by side, for the terminal, the report and results.json."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.table import Table

from rlhf.statistics import MeanWithInterval
from rlhf_cli.pipeline.actions import TRAINING_REWARD, TRUE_SCORE
from services.trainer.evaluation.evaluate import Evaluation, EvaluationRow
from services.trainer.evaluation.report import WinRate, read_evaluations, win_rates
from services.trainer.offline.reward_model.report import RewardModelReport, read_report

RESULTS_FILE = "results.json"

MEASURES = (
    (f"reward/{TRUE_SCORE}", "true score", "{:+.3f}"),
    (f"reward/{TRAINING_REWARD}", "reward-model score", "{:+.3f}"),
    ("kl", "KL, nats/completion", "{:.2f}"),
    ("num_tokens", "length, tokens", "{:.1f}"),
    ("distinct_2", "distinct-2", "{:.3f}"),
)
"""(name in an evaluation's summary, heading, format)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointCheck:
    """Whether the saved checkpoint is what is served, and whether transformers and the engine read it alike."""

    digests_equal: bool
    """The checkpoint's weights digest is that of the weights the policy service ended with."""
    num_prompts: int
    num_equal: int
    """Prompts whose greedy completions in transformers and in the engine, both in float32, are equal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasureRow:
    """One line of the table."""

    name: str
    heading: str
    before: MeanWithInterval
    after: MeanWithInterval
    before_text: str
    after_text: str
    change_text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplePair:
    """A completion before and one after, of the same prompt."""

    prompt: str
    before: EvaluationRow
    after: EvaluationRow


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResults:
    """All that the demo reports."""

    before: Evaluation
    after: Evaluation
    reward_model: RewardModelReport
    check: CheckpointCheck
    phase_seconds: dict[str, float]
    checkpoint: Path

    @classmethod
    def read(cls, run_dir: Path, check: CheckpointCheck, phase_seconds: Mapping[str, float]) -> Self:
        """Returns what the stages of a finished demo have written, with what it has found out and measured besides."""
        evaluations = read_evaluations(run_dir / "evaluate" / "results")
        return cls(
            before=evaluations["start"],
            after=evaluations["ppo"],
            reward_model=read_report(run_dir / "reward_model" / "run"),
            check=check,
            phase_seconds=dict(phase_seconds),
            checkpoint=run_dir / "export" / "model",
        )

    @property
    def num_prompts(self) -> int:
        """Held-out prompts."""
        return len({row.prompt_index for row in self.after.rows})

    @property
    def improved(self) -> bool:
        """Whether the true score rose by more than both 95 % half-widths."""
        before, after = (each.summary[f"reward/{TRUE_SCORE}"] for each in (self.before, self.after))
        return after.mean - before.mean > (before.half_width or 0.0) + (after.half_width or 0.0)

    @property
    def win_rates(self) -> dict[str, WinRate]:
        """How often a completion after scores above one before of the same prompt, by the reward service that says."""
        return win_rates({"before": self.before, "after": self.after})["after"]

    def measures(self) -> list[MeasureRow]:
        """Returns the lines of the table."""
        rows = []
        for name, heading, form in MEASURES:
            before, after = self.before.summary.get(name), self.after.summary.get(name)
            if before is None or after is None:  # no completion had two words
                continue
            rows.append(
                MeasureRow(
                    name=name,
                    heading=heading,
                    before=before,
                    after=after,
                    before_text=before.format(form),
                    after_text=after.format(form),
                    change_text=_signed(after.mean - before.mean, form),
                )
            )
        return rows

    def samples(self, count: int) -> list[SamplePair]:
        """Returns the first completion before and after of the first prompts of the held-out file: not a selection."""
        before, after = _first_rows(self.before.rows), _first_rows(self.after.rows)
        shared = sorted(before.keys() & after.keys())[:count]
        return [SamplePair(prompt=before[index].prompt, before=before[index], after=after[index]) for index in shared]

    def write_json(self, path: Path) -> None:
        """Writes the numbers."""
        numbers = {
            "improved": self.improved,
            "measures": {
                row.name: {"before": asdict(row.before), "after": asdict(row.after)} for row in self.measures()
            },
            "win_rates": {name: asdict(rate) for name, rate in self.win_rates.items()},
            "dropped": {"before": self.before.dropped, "after": self.after.dropped},
            "reward_model": asdict(self.reward_model),
            "checkpoint": str(self.checkpoint),
            "checkpoint_check": asdict(self.check),
            "phase_seconds": self.phase_seconds,
        }
        path.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")


def show(results: DemoResults, console: Console, *, num_samples: int = 3) -> None:
    """Prints samples, the table and the seconds of each phase."""
    table = Table(title="Held-out prompts, before and after", title_justify="left", show_lines=True, expand=True)
    table.add_column("prompt", ratio=2)
    table.add_column("before", ratio=3)
    table.add_column("after", ratio=3)
    for sample in results.samples(num_samples):
        table.add_row(sample.prompt, _with_score(sample.before), _with_score(sample.after))
    console.print(table, markup=False)
    table = Table(title="mean ± 95 % interval", title_justify="left")
    for heading in ("", "before", "after", "change"):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    for row in results.measures():
        table.add_row(row.heading, row.before_text, row.after_text, row.change_text)
    console.print(table)
    table = Table(title="seconds", title_justify="left", show_header=False)
    for title, seconds in results.phase_seconds.items():
        table.add_row(title, f"{seconds:.0f}")
    table.add_row("all", f"{sum(results.phase_seconds.values()):.0f}", style="bold")
    console.print(table)


def verdict(results: DemoResults) -> str:
    """Returns one sentence on the outcome."""
    row = results.measures()[0]
    if results.improved:
        return f"The true score rose by {row.change_text}, more than both 95 % intervals together."
    return (
        f"The true score changed by {row.change_text}, which is not more than both 95 % intervals together "
        "(expected of a short run such as --quick)."
    )


def _first_rows(rows: Sequence[EvaluationRow]) -> dict[int, EvaluationRow]:
    first: dict[int, EvaluationRow] = {}
    for row in rows:
        first.setdefault(row.prompt_index, row)
    return first


def _signed(value: float, form: str) -> str:
    return form.replace("{:.", "{:+.").format(value)


def _with_score(row: EvaluationRow) -> str:
    return f"{row.completion.strip()}\n[{row.rewards[TRUE_SCORE]:+.2f}]"
