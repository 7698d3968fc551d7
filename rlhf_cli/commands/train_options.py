"""What all `rlhf train` commands have in common."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from rlhf_cli.commands.output import UsageError

# Everything that is not an option of the command is a field of the configuration: --training.steps 30.
FIELDS: dict[str, Any] = {"allow_extra_args": True, "ignore_unknown_options": True}
EPILOG = "Every field of the configuration is a flag too, such as {example}; --fields lists them all."

ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="TOML file with the configuration.")
]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")]
FieldsOption = Annotated[bool, typer.Option("--fields", help="List every field of the configuration, and exit.")]


def arguments_of(config: Path | None, rest: Sequence[str], fields: bool) -> list[str]:
    """Returns the command line as load_config takes it."""
    stray = next((each for each in rest[:1] if not each.startswith("--")), None)
    if stray is not None:
        raise UsageError(
            f"unexpected argument '{stray}'; fields of the configuration are given as --section.field VALUE"
        )
    arguments = ["--help"] if fields else list(rest)
    return arguments if config is None else ["--config", str(config), *arguments]
