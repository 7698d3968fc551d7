"""The errors that cross a service's border, and the status codes they travel as."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

import grpc


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


class InternalError(ServiceError):
    """A fault of the service itself; its log has the details."""

    status = grpc.StatusCode.INTERNAL


class FatalError(NotReadyError):
    """The backend cannot recover inside this process: it exits, so that its supervisor starts a fresh one."""


_CLASS_OF_STATUS: Mapping[grpc.StatusCode, type[ServiceError]] = MappingProxyType(
    {
        **{cls.status: cls for cls in (InvalidRequestError, NotFoundError, PreconditionError, OverloadedError)},
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
    error_class = _CLASS_OF_STATUS.get(status, InternalError)
    return error_class(f"{service} at {target}: {details}")


def tls_hint(details: str) -> str:
    """Returns what to check, to be added to gRPC's words on a failed connection; empty if TLS cannot be the cause."""
    # A server with TLS closes on a client without: that is all the client sees.
    if "last error" in details and any(sign in details.lower() for sign in ("socket closed", "handshake", "ssl")):
        return "; either both sides have certificates of the same authority in the RLHF_TLS variables, or neither"
    return ""
