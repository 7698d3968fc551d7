"""Errors: of configurations, of calls, each with the status that it travels as, and of runs. Needs no gRPC."""

from typing import ClassVar


class ConfigError(ValueError):
    """A configuration that cannot be used. The message names the dotted path, the value and the remedy."""


class ServiceError(Exception):
    """An error that a caller is told about: the message names the field, the value and the remedy."""

    status: ClassVar[str] = "INTERNAL"
    """The name of gRPC's status code that it travels as."""


class InvalidRequestError(ServiceError):
    """The request is wrong and will be wrong again: mend it."""

    status = "INVALID_ARGUMENT"


class NotFoundError(ServiceError):
    """What the request names does not exist."""

    status = "NOT_FOUND"


class PreconditionError(ServiceError):
    """The request is right, but something else must happen first (for example: push the current weights)."""

    status = "FAILED_PRECONDITION"


class NotReadyError(ServiceError):
    """The service is loading, dead or away; the same request may succeed later."""

    status = "UNAVAILABLE"


class OverloadedError(ServiceError):
    """The service has as much to do as it accepts; the same request may succeed later."""

    status = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        """Args: retry_after_seconds: when there should be room again; None if nobody knows, or there never will be."""
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class UnauthenticatedError(ServiceError):
    """Nobody knows who calls: there is no token or certificate, or one that is not known."""

    status = "UNAUTHENTICATED"


class PermissionDeniedError(ServiceError):
    """The caller is known, and may not call this."""

    status = "PERMISSION_DENIED"


class DeadlineExceededError(ServiceError):
    """The time that the caller has given the call is over."""

    status = "DEADLINE_EXCEEDED"


class InternalError(ServiceError):
    """A fault of the service itself; its log has the details."""

    status = "INTERNAL"


class FatalError(NotReadyError):
    """The backend cannot recover inside this process: it exits, so that its supervisor starts a fresh one."""


class RunError(RuntimeError):
    """A run that cannot go on. The message says what failed, with its value, and what to do."""


class StoppedError(Exception):
    """A signal ended a training before its last step; a checkpoint was written, and --resume goes on from it."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("a signal stopped the training after a checkpoint; go on with --resume")
        self.exit_code = exit_code
        """What the process should end with: 128 + the signal's number."""


class NonFiniteError(RunError):
    """A loss or a gradient is NaN or infinite; nothing was changed by it."""

    def __init__(self, quantity: str, value: float) -> None:
        super().__init__(
            f"{quantity} is {value}; the weights were left as they were. Lower the learning rate or max_grad_norm, and "
            "look at the rewards or examples of this step"
        )
