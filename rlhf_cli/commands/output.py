"""What commands print: results on stdout, as text or as JSON lines; progress on stderr."""

import json
from collections.abc import Collection, Mapping, Sequence

from rich.console import Console
from rich.table import Table

stdout = Console(highlight=False)
stderr = Console(stderr=True, highlight=False)


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
