"""Errors of configurations, of calls (each with its gRPC status) and of runs. Needs no gRPC."""

from typing import ClassVar


class ConfigError(ValueError):
    """A configuration that cannot be used. The message names the dotted path, the value and the remedy."""


class ServiceError(Exception):
    """An error that is returned to the caller. The message names the field, the value and the remedy."""

    status: ClassVar[str] = "INTERNAL"
    """Name of the gRPC status code of the answer."""


class InvalidRequestError(ServiceError):
    """The request is invalid; a retry fails too."""

    status = "INVALID_ARGUMENT"


class NotFoundError(ServiceError):
    """Something that the request names does not exist."""

    status = "NOT_FOUND"


class PreconditionError(ServiceError):
    """The request is valid, but something else must happen first, such as a push of the current weights."""

    status = "FAILED_PRECONDITION"


class NotReadyError(ServiceError):
    """The service is loading, dead or unreachable; a retry may succeed later."""

    status = "UNAVAILABLE"


class OverloadedError(ServiceError):
    """The queue of the service is full; a retry may succeed later."""

    status = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        """Args:
        message: what is full, and the limit.
        retry_after_seconds: when to retry; None if unknown, or if a retry cannot succeed.
        """
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class UnauthenticatedError(ServiceError):
    """The caller is unknown: no token or certificate, or one that is not listed."""

    status = "UNAUTHENTICATED"


class PermissionDeniedError(ServiceError):
    """The caller is known, but lacks the scope."""

    status = "PERMISSION_DENIED"


class DeadlineExceededError(ServiceError):
    """The deadline of the call has passed."""

    status = "DEADLINE_EXCEEDED"


class InternalError(ServiceError):
    """A fault of the service; its log has the details."""

    status = "INTERNAL"


class FatalError(NotReadyError):
    """The backend cannot recover inside this process. It exits, so that its supervisor starts a new one."""


class RunError(RuntimeError):
    """A run that cannot continue. The message names what failed, its value, and the remedy."""


class StoppedError(Exception):
    """A signal ended a training before its last step. A checkpoint was written; --resume continues from it."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("a signal stopped the training after a checkpoint; go on with --resume")
        self.exit_code = exit_code
        """Exit code of the process: 128 + the signal's number."""


class NonFiniteError(RunError):
    """A loss or a gradient is NaN or infinite; the weights are unchanged."""

    def __init__(self, quantity: str, value: float) -> None:
        super().__init__(
            f"{quantity} is {value}; the weights were left as they were. Lower the learning rate or max_grad_norm, and "
            "look at the rewards or examples of this step"
        )
