"""`rlhf demo`: the whole of RLHF on this machine."""

from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from rlhf_cli.commands.output import stderr, stdout

RunDirOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Where to write everything. Default: runs/demo-DATE-TIME.")
]


def demo(
    run_dir: RunDirOption = None,
    model: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Checkpoint to start from. Default: a small real model."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="PPO steps.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=2, help="Most tokens of a completion.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Decides samples, noise, splits and orders.")] = None,
    engine: Annotated[Literal["vllm", "transformers"], typer.Option(help="What samples.")] = "vllm",
    wait_for_services: Annotated[
        float | None,
        typer.Option(min=0, metavar="SECONDS", help="How long a service may be away before the demo fails."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few minutes: every part, but too short to show a clear effect.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON on stdout.")] = False,
) -> None:
    """Run all of RLHF here: services, simulated preferences, a reward model, PPO, before and after."""
    from rlhf_cli.demo.demo import run_demo
    from rlhf_cli.demo.options import DemoOptions

    folder = run_dir or Path("runs") / f"demo-{datetime.now():%Y%m%d-%H%M%S}"
    options = DemoOptions(run_dir=folder.resolve(), model=model, engine=engine)
    given: dict[str, Any] = {
        "steps": steps,
        "max_new_tokens": max_new_tokens,
        "seed": seed,
        "wait_for_services_seconds": wait_for_services,
    }
    options = replace(
        options.quick() if quick else options, **{name: value for name, value in given.items() if value is not None}
    )
    run_demo(options, stderr if as_json else stdout)
    if as_json:
        stdout.out(options.results_file.read_text(encoding="utf-8"), end="", highlight=False)
