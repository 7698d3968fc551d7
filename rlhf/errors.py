"""The errors that cross a service's border, and the status codes they travel as."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import grpc

RETRY_AFTER_KEY = "retry-after-ms"
"""Trailing metadata of an OverloadedError, in whole milliseconds; the status carries google.rpc.RetryInfo as well."""


class ConfigError(ValueError):
    """A configuration that cannot be used. The message names the dotted path, the value and the remedy."""


class ServiceError(Exception):
    """An error that a caller is told about: the message names the field, the value and the remedy."""

    status: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL


class InvalidRequestError(ServiceError):
    """The request is wrong and will be wrong again: mend it."""

    status = grpc.StatusCode.INVALID_ARGUMENT


class NotFoundError(ServiceError):
    """What the request names does not exist."""

    status = grpc.StatusCode.NOT_FOUND


class PreconditionError(ServiceError):
    """The request is right, but something else must happen first (for example: push the current weights)."""

    status = grpc.StatusCode.FAILED_PRECONDITION


class NotReadyError(ServiceError):
    """The service is loading, dead or away; the same request may succeed later."""

    status = grpc.StatusCode.UNAVAILABLE


class OverloadedError(ServiceError):
    """The service has as much to do as it accepts; the same request may succeed later."""

    status = grpc.StatusCode.RESOURCE_EXHAUSTED

    def __init__(self, message: str, retry_after_seconds: float | None = None) -> None:
        """Args: retry_after_seconds: when there should be room again; None if nobody knows, or there never will be."""
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class UnauthenticatedError(ServiceError):
    """Nobody knows who calls: there is no token or certificate, or one that is not known."""

    status = grpc.StatusCode.UNAUTHENTICATED


class PermissionDeniedError(ServiceError):
    """The caller is known, and may not call this."""

    status = grpc.StatusCode.PERMISSION_DENIED


class DeadlineExceededError(ServiceError):
    """The time that the caller has given the call is over."""

    status = grpc.StatusCode.DEADLINE_EXCEEDED


class InternalError(ServiceError):
    """A fault of the service itself; its log has the details."""

    status = grpc.StatusCode.INTERNAL


class FatalError(NotReadyError):
    """The backend cannot recover inside this process: it exits, so that its supervisor starts a fresh one."""


_CLASS_OF_STATUS: Mapping[grpc.StatusCode, type[ServiceError]] = MappingProxyType(
    {
        **{cls.status: cls for cls in (InvalidRequestError, NotFoundError, PreconditionError, OverloadedError)},
        **{cls.status: cls for cls in (UnauthenticatedError, PermissionDeniedError)},
        grpc.StatusCode.OUT_OF_RANGE: InvalidRequestError,
        grpc.StatusCode.UNAVAILABLE: NotReadyError,
        grpc.StatusCode.DEADLINE_EXCEEDED: NotReadyError,
        grpc.StatusCode.CANCELLED: NotReadyError,
    }
)


def from_rpc_error(error: grpc.aio.AioRpcError, service: str, target: str) -> ServiceError:
    """Returns the error of this module that a failed call stands for, its message naming the service and its target."""
    status = error.code()
    details = error.details() or status.name
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        details = "did not answer within the call's deadline"
    elif status is grpc.StatusCode.UNAVAILABLE:
        details += tls_hint(details)
    message = f"{service} at {target}: {details}"
    error_class = _CLASS_OF_STATUS.get(status, InternalError)
    if error_class is OverloadedError:
        return OverloadedError(message, _retry_after_seconds(error))
    return error_class(message)


def _retry_after_seconds(error: grpc.aio.AioRpcError) -> float | None:
    """Returns what the server said in its trailing metadata; None if it said nothing that can be used."""
    for key, value in error.trailing_metadata() or ():
        if key == RETRY_AFTER_KEY and isinstance(value, str) and value.isascii() and value.isdigit():
            return int(value) / 1000
    return None


def tls_hint(details: str) -> str:
    """Returns what to check, to be added to gRPC's words on a failed connection; empty if TLS cannot be the cause."""
    # A server with TLS closes on a client without: that is all the client sees.
    if "last error" in details and any(sign in details.lower() for sign in ("socket closed", "handshake", "ssl")):
        return "; either both sides have certificates of the same authority in the RLHF_TLS variables, or neither"
    return ""


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
