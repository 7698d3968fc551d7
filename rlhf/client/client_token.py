"""The token that a client shows: given to it, or in the file that RLHF_TOKEN_FILE names."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from rlhf.client.renewed import Renewed
from rlhf.errors import ConfigError

TOKEN_VARIABLE = "RLHF_TOKEN_FILE"
"""A file with nothing but the token; it is read again when it changes."""


def token_source(token: str | None = None, environment: Mapping[str, str] = os.environ) -> Callable[[], str | None]:
    """Returns a function that says which token to show now, None for none.

    Args: token: shown always, whatever the environment says.
    Raises: ConfigError for a token that cannot be sent, or a file that cannot be read.
    """
    if token is not None:
        checked = _checked(token, "token")
        return lambda: checked
    path = Path(environment.get(TOKEN_VARIABLE, ""))
    if not path.name:
        return lambda: None
    return Renewed([path], lambda: _read(path)).get


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{TOKEN_VARIABLE} is '{path}', which cannot be read ({error.strerror}); mount the file, or unset the "
            "variable to send no token"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{TOKEN_VARIABLE} '{path}': not a token; make one with `rlhf token new`") from None
    return _checked(text.strip(), f"{TOKEN_VARIABLE} '{path}'")


def _checked(token: str, where: str) -> str:
    """Returns the token. Raises ConfigError, which does not say what it is."""
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"{where}: should hold one token, of ASCII characters without spaces; make one with `rlhf token new`"
        )
    return token
