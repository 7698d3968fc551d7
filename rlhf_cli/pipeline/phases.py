"""What a long command shows on the terminal: phases with their seconds, spinners, bars and sentences."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.status import Status
from rich.table import Table


class Phases:
    """Shows what is going on, and keeps the time."""

    def __init__(self, console: Console, total: int = 0) -> None:
        self.seconds: dict[str, float] = {}
        """How long each finished phase took."""
        self.total = total
        """How many phases there will be; it may be set later, before the first of them."""
        self._console = console
        self._count = 0

    @contextmanager
    def phase(self, title: str) -> Iterator[None]:
        """Puts a heading above what is printed inside, and notes the time when it ends without an error."""
        self._count += 1
        self._console.print()
        self._console.rule(f"[bold]{self._count}/{self.total}  {title}", align="left")
        start = time.monotonic()
        yield
        self.seconds[title] = time.monotonic() - start
        self.say(f"({self.seconds[title]:.0f} s)", style="dim")

    def say(self, message: str, *, style: str | None = None) -> None:
        """Prints a sentence as it is: no markup, no wrapping inside paths."""
        self._console.print(message, style=style, markup=False, highlight=False, soft_wrap=True)

    def show(self, table: Table) -> None:
        """Prints a table."""
        self._console.print(table)

    @contextmanager
    def waiting(self, what: str) -> Iterator[Callable[[Mapping[str, float | None]], None]]:
        """Shows a spinner with what each service is at; gives the function to tell it."""
        start = time.monotonic()
        told: set[str] = set()
        with Status(what, console=self._console) as status:

            def show(states: Mapping[str, float | None]) -> None:
                for name, seconds in states.items():
                    if seconds is not None and name not in told:
                        told.add(name)
                        self.say(f"{name} is serving after {seconds:.0f} s")
                left = ", ".join(name for name, seconds in states.items() if seconds is None)
                status.update(f"{what}: {left}  ({time.monotonic() - start:.0f} s)")

            yield show

    @contextmanager
    def counting(self, what: str, total: int) -> Iterator[Callable[[], None]]:
        """Shows a bar; gives the function that advances it by one."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self._console) as progress:
            bar = progress.add_task(what, total=total)
            yield lambda: progress.advance(bar)

    @contextmanager
    def working(self, what: str) -> Iterator[None]:
        """Shows a spinner."""
        with Status(what, console=self._console):
            yield
