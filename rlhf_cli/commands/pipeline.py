"""`rlhf demo` and `rlhf pipeline`: the whole of RLHF on this machine, and a whole training from one file."""

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import typer

from rlhf_cli.commands.output import print_json, print_table, stderr, stdout
from rlhf_cli.commands.targets import JsonOption

app = typer.Typer(no_args_is_help=True)
SHOWN_DIGITS = 8
"""Of a digest; --json has all of them."""
STYLES = {"done": "green", "given": "green", "running": "yellow", "interrupted": "yellow", "failed": "red"}
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
    from rlhf_cli.demo.demo import QUICK, SEEDS, run_demo
    from rlhf_cli.demo.results import RESULTS_FILE

    folder = (run_dir or Path("runs") / f"demo-{datetime.now():%Y%m%d-%H%M%S}").resolve()
    given: dict[str, object] = {
        "services.engine": engine,
        "services.wait_for_services_seconds": wait_for_services,
        "sampling.max_new_tokens": max_new_tokens,
        "ppo.training.steps": steps,
        **dict.fromkeys(SEEDS, seed),
    }
    changes = {path: value for path, value in given.items() if value is not None}
    run_demo(folder, model, {**QUICK, **changes} if quick else changes, stderr if as_json else stdout)
    if as_json:
        stdout.out((folder / RESULTS_FILE).read_text(encoding="utf-8"), end="", highlight=False)


@app.command()
def run(
    config: Annotated[Path, typer.Argument(metavar="FILE", help="TOML file with the pipeline (docs/pipeline.md).")],
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on in its run directory: what is up to date stays, what stopped goes on."),
    ] = False,
    first: Annotated[
        str | None, typer.Option("--from", metavar="STAGE", help="Do this stage and all after it afresh.")
    ] = None,
    only: Annotated[str | None, typer.Option(metavar="STAGE", help="Do this stage alone, afresh.")] = None,
) -> None:
    """Run the stages of a pipeline: sft, sample, label, reward_model, ppo or dpo or a relative, evaluate, export."""
    from rlhf_cli.pipeline.pipeline import Selection, run_pipeline

    run_pipeline(config, Selection(resume=resume, first=first, only=only), stdout)


@app.command()
def status(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The run directory of a pipeline.")],
    as_json: JsonOption = False,
) -> None:
    """Show the stages of a pipeline's run: how far each is, what it made, and from what."""
    from rlhf_cli.pipeline.lineage import Lineage

    records = Lineage(run_dir).read_all()
    if as_json:
        for record in records:
            print_json(asdict(record))
        return
    rows = [
        [
            record.stage,
            record.state,
            "" if record.state == "given" else f"{record.seconds:.0f}",
            "" if record.output is None else f"{record.output.digest[:SHOWN_DIGITS]}  {record.output.path}",
            record.error or "  ".join(f"{each.digest[:SHOWN_DIGITS]} {name}" for name, each in record.inputs.items()),
        ]
        for record in records
    ]
    print_table(["stage", "state", "seconds", "made", "from"], rows, styles=STYLES)
