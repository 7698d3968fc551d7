"""`rlhf`: the command line. Parsing and --help load no torch; each command imports what it needs when it runs."""

import sys
from collections.abc import Sequence

import typer

from rlhf.errors import ConfigError, RunError, ServiceError
from rlhf.process import end_rank, sleep_at_barriers
from rlhf_cli.cluster.errors import ClusterError
from rlhf_cli.commands import model, pipeline, reward, runs, tokens, train
from rlhf_cli.commands.ask import generate, logprobs, score
from rlhf_cli.commands.evaluate import evaluate, frontier
from rlhf_cli.commands.output import CommandError, UsageError, print_error
from rlhf_cli.commands.pipeline import demo
from rlhf_cli.commands.runs import submit
from rlhf_cli.commands.status import status
from rlhf_cli.local.processes import LocalServiceError

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

app = typer.Typer(
    name="rlhf",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train a language model from preferences, with every part as a service.",
)
app.command()(demo)
app.add_typer(train.app, name="train")
app.add_typer(pipeline.app, name="pipeline")
app.add_typer(model.app, name="model")
app.command()(generate)
app.command()(score)
app.add_typer(reward.app, name="reward")
app.command()(logprobs)
app.command()(status)
app.command("eval")(evaluate)
app.command()(frontier)
app.command()(submit)
app.add_typer(runs.app, name="runs")
app.add_typer(tokens.app, name="token")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code: 0 done, 1 failed, 2 wrong usage or configuration, 130 interrupted."""
    sleep_at_barriers()
    return end_rank(_run(argv))


def _run(argv: Sequence[str] | None) -> int:
    try:
        result = app(args=None if argv is None else list(argv), prog_name="rlhf", standalone_mode=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else EXIT_FAILURE if end.code else 0
    except KeyboardInterrupt:
        print_error("interrupted")
        return EXIT_INTERRUPTED
    except (ConfigError, UsageError) as error:
        print_error(str(error))
        return EXIT_USAGE
    except (CommandError, ServiceError, RunError, LocalServiceError, ClusterError) as error:
        print_error(str(error))
        return EXIT_FAILURE
    return result if isinstance(result, int) else 0


if __name__ == "__main__":
    sys.exit(main())
