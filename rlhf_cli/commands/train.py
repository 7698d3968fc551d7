"""The commands `rlhf train ...`, one for each kind of training."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from rlhf_cli.commands.output import stderr
from rlhf_cli.errors import UsageError
from services.trainer.trainings import TRAININGS, Training

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


WaitOption = Annotated[
    float | None,
    typer.Option(min=0, metavar="SECONDS", help="How long a service may be away before the run ends with an error."),
]
app = typer.Typer(no_args_is_help=True)


def _train(training: Training, arguments: list[str], *, resume: bool) -> None:
    from rlhf.config import load_config

    prog = f"rlhf train {training.name}"
    config = load_config(training.config_class, prog=prog, argv=arguments, env_prefix=training.env_prefix)
    raise typer.Exit(training.run_to_end(config, resume=resume, console=stderr))


def _online(training: Training) -> Callable[..., None]:
    def run(
        context: typer.Context,
        config: ConfigOption = None,
        resume: ResumeOption = False,
        wait_for_services: WaitOption = None,
        fields: FieldsOption = False,
    ) -> None:
        arguments = arguments_of(config, context.args, fields)
        if wait_for_services is not None:
            arguments += ["--services.wait_for_services_seconds", str(wait_for_services)]
        _train(training, arguments, resume=resume)

    return run


def _offline(training: Training) -> Callable[..., None]:
    def run(
        context: typer.Context, config: ConfigOption = None, resume: ResumeOption = False, fields: FieldsOption = False
    ) -> None:
        _train(training, arguments_of(config, context.args, fields), resume=resume)

    return run


for each in TRAININGS.values():
    command = _online(each) if each.is_online else _offline(each)
    epilog = EPILOG.format(example=each.example)
    app.command(each.name, help=each.help, context_settings=FIELDS, epilog=epilog)(command)
