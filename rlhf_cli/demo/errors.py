"""Errors of the demo; the command line prints their message and exits 1."""


class DemoError(RuntimeError):
    """The demo cannot go on. The message says why and what to do."""
