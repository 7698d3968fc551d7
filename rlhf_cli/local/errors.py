"""Errors of the services that run on this machine."""


class LocalServiceError(RuntimeError):
    """A service could not be started, or died; the message says which, and where its log is."""
