"""Errors of commands, and how they are shown. Loads nothing, so that `rlhf --help` loads nothing."""

import sys


class CommandError(Exception):
    """A command that failed; the message is printed after "rlhf: " and the exit code is 1."""


class UsageError(CommandError):
    """Arguments that do not fit together; the exit code is 2."""


class LocalServiceError(CommandError):
    """A service could not be started, or died; the message says which, and where its log is."""


class ClusterError(CommandError):
    """The cluster cannot be reached, refuses, or does not have what is needed; the message says what to do."""


def print_error(message: str) -> None:
    """Prints each line of a message to stderr after the program's name, as it is (no markup, no wrapping)."""
    for line in message.splitlines():
        print(f"rlhf: {line}", file=sys.stderr)
