"""What an offline training shows: a bar with the time left, or where there is no terminal a plain line now and then."""

from collections import deque
from collections.abc import Mapping
from statistics import fmean
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

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


class FitProgress:
    """Shows steps as they end; use as a context manager."""

    def __init__(self, console: Console, *, title: str, total: int, done: int = 0) -> None:
        self._console, self._title, self._total = console, title, total
        self._recent: deque[Mapping[str, float]] = deque(maxlen=RECENT_STEPS)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, TextColumn("{task.fields[facts]}"), console=console)
        self._task = self._bar.add_task(title, total=total, completed=done, facts="")

    def say(self, message: str) -> None:
        """Prints a sentence."""
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows a finished step."""
        self._recent.append(metrics)
        facts = "  ".join(form.format(self._mean(name)) for name, form in FACTS if name in metrics)
        if self._console.is_terminal:
            self._bar.update(self._task, completed=step, facts=facts)
        elif step % max(1, self._total // PLAIN_LINES) == 0 or step == self._total:
            self.say(f"{self._title} step {step}/{self._total}  {facts}")
        heldout = [f"{name.replace('_', ' ', 1)} {value:.3f}" for name, value in metrics.items() if "heldout_" in name]
        if heldout:
            self.say(f"step {step}: {', '.join(heldout)}")

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._bar.stop()

    def _mean(self, name: str) -> float:
        return fmean(metrics[name] for metrics in self._recent)
