"""`rlhf`: the command line. To list and describe commands it loads no model, no network and no configuration."""

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import typer
from typer.core import TyperGroup
from typer.main import get_command, get_group

from rlhf.errors import ConfigError, RunError, ServiceError
from rlhf.process import end_rank, sleep_at_barriers
from rlhf_cli.errors import CommandError, UsageError, print_error

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class Lazy(NamedTuple):
    """A command, which is imported when it is asked for."""

    place: str
    """Where it is, as "module:name": a function, or a typer.Typer with commands of its own."""
    help: str
    """Its line in the list of commands."""


HELP = "Train a language model from preferences, with every part as a service."
COMMANDS: Mapping[str, Lazy] = MappingProxyType(
    {
        "demo": Lazy(
            "rlhf_cli.commands.pipeline:demo",
            "Run all of RLHF here: services, simulated preferences, a reward model, PPO, before and after.",
        ),
        "train": Lazy("rlhf_cli.commands.train:app", "Train a policy or a reward model."),
        "pipeline": Lazy("rlhf_cli.commands.pipeline:app", "Run a whole training, stage by stage, from one file."),
        "model": Lazy("rlhf_cli.commands.prepare:models", "Put a model where services load it from."),
        "generate": Lazy("rlhf_cli.commands.ask:generate", "Sample completions from the policy service."),
        "score": Lazy("rlhf_cli.commands.ask:score", "Score completions with the reward service."),
        "reward": Lazy(
            "rlhf_cli.commands.reward:app", "Watch rewards for signs of hacking, swap the model, compare completions."
        ),
        "logprobs": Lazy(
            "rlhf_cli.commands.ask:logprobs",
            "Show the log-probability of each token of completions under the reference.",
        ),
        "status": Lazy(
            "rlhf_cli.commands.status:status",
            "Show health, model and version of every service. Exits 1 unless all are serving.",
        ),
        "eval": Lazy(
            "rlhf_cli.commands.evaluate:evaluate",
            "Sample completions of prompts from one or more policies, score them, and show means with 95 % intervals.",
        ),
        "frontier": Lazy(
            "rlhf_cli.commands.evaluate:frontier",
            "Show what policies earn against their KL to the reference: the reward-KL frontier.",
        ),
        "submit": Lazy(
            "rlhf_cli.commands.runs:submit",
            "Train on a Kubernetes cluster: check the configuration, create the run, and follow it if asked to.",
        ),
        "runs": Lazy("rlhf_cli.commands.runs:app", "List, watch, stop and resume runs on a Kubernetes cluster."),
        "token": Lazy("rlhf_cli.commands.prepare:tokens", "Make tokens by which services know their clients."),
    }
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted."""
    sleep_at_barriers()
    return end_rank(_run(argv))


def _run(argv: Sequence[str] | None) -> int:
    group = LazyGroup("rlhf", HELP, COMMANDS)
    try:
        result = group.main(args=None if argv is None else list(argv), prog_name="rlhf")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else EXIT_FAILURE if end.code else 0
    except KeyboardInterrupt:
        print_error("interrupted")
        return EXIT_INTERRUPTED
    except (ConfigError, UsageError) as error:
        print_error(str(error))
        return EXIT_USAGE
    except (CommandError, ServiceError, RunError) as error:
        print_error(str(error))
        return EXIT_FAILURE
    return result if isinstance(result, int) else 0


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
        place, help_text = self._table[cmd_name]
        module, _, attribute = place.partition(":")
        found = getattr(import_module(module), attribute)
        if isinstance(found, typer.Typer):
            found.rich_markup_mode = None
            group = get_group(found)
            group.name, group.help = cmd_name, help_text
            return group
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        app.command(cmd_name)(found)
        return get_command(app)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes the list of commands."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in self._table.items()])


if __name__ == "__main__":
    sys.exit(main())
