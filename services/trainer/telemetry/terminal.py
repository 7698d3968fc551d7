"""What a run shows on the terminal: a live table, or where there is no terminal one plain line a step."""

from collections import deque
from collections.abc import Mapping
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

MAX_ROWS = 15

# Heading, metric, format; those that the run has are shown. The full list, with units, is in step_metrics.py.
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
    ("push s", "publish_seconds", "{:.1f}"),
    ("step s", "step_seconds", "{:.1f}"),
)


class Progress:
    """Shows steps as they end; use as a context manager."""

    def __init__(self, console: Console, *, title: str, num_steps: int) -> None:
        self._console = console
        self._title = title
        self._num_steps = num_steps
        self._headings: tuple[str, ...] = ()
        self._rows: deque[list[str]] = deque(maxlen=MAX_ROWS)
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def say(self, message: str) -> None:
        """Prints a sentence above the table."""
        self._console.print(message, markup=False, highlight=False, soft_wrap=True)

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows a finished step."""
        shown = {heading: form.format(metrics[name]) for heading, name, form in COLUMNS if name in metrics}
        if self._live is None:
            self.say(f"step {step}/{self._num_steps}  " + "  ".join(f"{name} {value}" for name, value in shown.items()))
            return
        self._headings = tuple(shown)
        self._rows.append([f"{step}/{self._num_steps}", *shown.values()])
        self._live.update(self._table(), refresh=True)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def _table(self) -> Table:
        table = Table(title=self._title, title_justify="left")
        for heading in ("step", *self._headings):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in self._rows:
            table.add_row(*row)
        return table
