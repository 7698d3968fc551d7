"""A group of commands that imports the module of a command only when that command is asked for."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any, NamedTuple, cast

import typer
from typer.core import TyperGroup
from typer.main import get_command, get_group


class Lazy(NamedTuple):
    """A command that is not imported yet."""

    place: str
    """Where it is, as "module:name": a function, or a typer.Typer with commands of its own."""
    help: str
    """Its line in the list of commands."""


class LazyGroup(TyperGroup):
    """Lists its commands without importing any."""

    def __init__(self, name: str, help_text: str, table: Mapping[str, Lazy]) -> None:
        """Args: name: of the group; help_text: stands above the list; table: the commands by name."""
        # Without markup, typer does not load rich, which would take longer than all else.
        super().__init__(name=name, help=help_text, no_args_is_help=True, rich_markup_mode=None)
        self._table = table
        self.commands = cast(Any, dict.fromkeys(table))  # the names, for suggestions after a typo

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Imports a command; None if there is none of that name."""
        if cmd_name not in self._table:
            return None
        module, _, attribute = self._table[cmd_name].place.partition(":")
        found = getattr(import_module(module), attribute)
        if isinstance(found, typer.Typer):
            found.rich_markup_mode = None
            group = get_group(found)
            group.name = cmd_name
            return group
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        app.command(cmd_name)(found)
        return get_command(app)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes the list of commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in self._table.items()])
