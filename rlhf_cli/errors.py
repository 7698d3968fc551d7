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


class UnreachableError(ClusterError):
    """The cluster does not answer; it may do so later."""


class AbsentError(ClusterError):
    """The object does not exist."""


class ExistsError(ClusterError):
    """An object of that name exists already."""


def missing_extra(error: ImportError) -> ClusterError:
    """Returns the error for a package of the extra that is not installed."""
    return ClusterError(f"work with a cluster needs the package '{error.name}': pip install 'rlhf-services[k8s]'")


def print_error(message: str) -> None:
    """Prints each line of a message to stderr after the program's name, as it is (no markup, no wrapping)."""
    for line in message.splitlines():
        print(f"rlhf: {line}", file=sys.stderr)
