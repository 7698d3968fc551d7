"""What commands print: results on stdout, as text or as JSON lines; progress and errors on stderr."""

import json
import sys
from collections.abc import Collection, Mapping, Sequence

from rich.console import Console
from rich.table import Table

stdout = Console(highlight=False)
stderr = Console(stderr=True, highlight=False)


class CommandError(Exception):
    """A command that failed; the message is printed after "rlhf: " and the exit code is 1."""


class UsageError(CommandError):
    """Arguments that do not fit together; the exit code is 2."""


def print_error(message: str) -> None:
    """Prints each line of a message to stderr after the program's name, as it is (no markup, no wrapping)."""
    for line in message.splitlines():
        print(f"rlhf: {line}", file=sys.stderr)


def print_json(value: object) -> None:
    """Prints a value as one line of JSON to stdout."""
    print(json.dumps(value, ensure_ascii=False), flush=True)


def print_table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    styles: Mapping[str, str] | None = None,
    unbroken: Collection[str] = ("target",),
) -> None:
    """Prints rows of text under headings to stdout.

    Args:
        styles: the style in which every cell with that text is shown.
        unbroken: columns whose cells stay on one line: an address is there to be copied.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in unbroken)
    for row in rows:
        table.add_row(*(_styled(cell, (styles or {}).get(cell)) for cell in row))
    stdout.print(table)


def _styled(text: str, style: str | None) -> str:
    from rich.markup import escape

    return f"[{style}]{escape(text)}[/{style}]" if style else escape(text)
