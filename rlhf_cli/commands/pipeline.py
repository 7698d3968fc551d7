"""`rlhf pipeline`: a whole training of several stages, from one file."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from rlhf_cli.commands.output import print_json, print_table, stdout
from rlhf_cli.commands.targets import JsonOption

app = typer.Typer(no_args_is_help=True, help="Run a whole training, stage by stage, from one file.")
SHOWN_DIGITS = 8
"""Of a digest; --json has all of them."""
STYLES = {"done": "green", "given": "green", "running": "yellow", "interrupted": "yellow", "failed": "red"}


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
