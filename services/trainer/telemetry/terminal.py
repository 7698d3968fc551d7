"""What a run shows on the terminal: a live table, or where there is no terminal one plain line a step."""

from collections import deque
from collections.abc import Mapping
from statistics import fmean
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

MAX_ROWS = 15


def say(console: Console, message: str) -> None:
    """Prints a sentence as it is: without markup, colours or line breaks of rich."""
    console.print(message, markup=False, highlight=False, soft_wrap=True)


# Heading, metric, format; those that the run has are shown. The full list, with units, is in telemetry/step.py.
COLUMNS = (
    ("reward", "reward_mean", "{:.3f}"),
    ("±", "reward_std", "{:.3f}"),
    ("KL nats", "kl", "{:.2f}"),
    ("entropy", "entropy", "{:.2f}"),
    ("clipped", "clip_fraction", "{:.1%}"),
    ("margin", "reward_margin", "{:.3f}"),
    ("ties", "ties", "{:.0f}"),
    ("value EV", "value_explained_variance", "{:.2f}"),
    ("tokens", "completion_tokens_mean", "{:.0f}"),
    ("mismatch", "sampler_mismatch", "{:.3f}"),
    ("dropped", "dropped_rollouts", "{:.0f}"),
    ("lag", "policy_lag_mean", "{:.2f}"),
    ("generate s", "generate_seconds", "{:.1f}"),
    ("update s", "update_seconds", "{:.1f}"),
    ("push s", "fleet_push_seconds", "{:.1f}"),
    ("step s", "step_seconds", "{:.1f}"),
)


class _Shown:
    """What is shown of a run; use as a context manager, in which a display lives where there is a terminal."""

    def __init__(self, console: Console, title: str, display: Live | Progress) -> None:
        self._console, self._title, self._display = console, title, display

    def say(self, message: str) -> None:
        """Prints a sentence above the display."""
        say(self._console, message)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._display.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._display.stop()


class RunProgress(_Shown):
    """Shows the steps of an online run as they end: a table of the newest."""

    def __init__(self, console: Console, *, title: str, num_steps: int) -> None:
        self._live = Live(console=console, auto_refresh=False)
        super().__init__(console, title, self._live)
        self._num_steps = num_steps
        self._headings: tuple[str, ...] = ()
        self._rows: deque[list[str]] = deque(maxlen=MAX_ROWS)

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows a finished step."""
        shown = {heading: form.format(metrics[name]) for heading, name, form in COLUMNS if name in metrics}
        if not self._console.is_terminal:
            self.say(f"step {step}/{self._num_steps}  " + "  ".join(f"{name} {value}" for name, value in shown.items()))
            return
        self._headings = tuple(shown)
        self._rows.append([f"{step}/{self._num_steps}", *shown.values()])
        self._live.update(self._table(), refresh=True)

    def _table(self) -> Table:
        table = Table(title=self._title, title_justify="left")
        for heading in ("step", *self._headings):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in self._rows:
            table.add_row(*row)
        return table


RECENT_STEPS = 10
"""Steps over which what is shown is averaged: single ones are noisy."""
PLAIN_LINES = 50
"""About as many lines a training prints without a terminal."""

# Metric, format; those that a training lacks are left out.
FACTS = (
    ("loss", "loss {:.3f}"),
    ("accuracy", "accuracy {:.0%}"),
    ("tokens_per_second", "{:.0f} tokens/s"),
)


class FitProgress(_Shown):
    """Shows the steps of an offline training as they end: a bar."""

    def __init__(self, console: Console, *, title: str, total: int, done: int = 0) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, TextColumn("{task.fields[facts]}"), console=console)
        self._task = self._bar.add_task(title, total=total, completed=done, facts="")
        super().__init__(console, title, self._bar)
        self._total = total
        self._recent: deque[Mapping[str, float]] = deque(maxlen=RECENT_STEPS)

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows a finished step."""
        self._recent.append(metrics)
        facts = "  ".join(
            form.format(fmean(each[name] for each in self._recent)) for name, form in FACTS if name in metrics
        )
        if self._console.is_terminal:
            self._bar.update(self._task, completed=step, facts=facts)
        elif step % max(1, self._total // PLAIN_LINES) == 0 or step == self._total:
            self.say(f"{self._title} step {step}/{self._total}  {facts}")
        heldout = [f"{name.replace('_', ' ', 1)} {value:.3f}" for name, value in metrics.items() if "heldout_" in name]
        if heldout:
            self.say(f"step {step}: {', '.join(heldout)}")
