"""From a failed call to the error that the service meant, and what a failed connection may be for."""

from collections.abc import Mapping
from types import MappingProxyType

import grpc

from rlhf.errors import (
    InternalError,
    InvalidRequestError,
    NotFoundError,
    NotReadyError,
    OverloadedError,
    PermissionDeniedError,
    PreconditionError,
    ServiceError,
    UnauthenticatedError,
)

RETRY_AFTER_KEY = "retry-after-ms"
"""Trailing metadata of an OverloadedError, in whole milliseconds; the status carries google.rpc.RetryInfo as well."""


class SilentError(NotReadyError):
    """The service did not answer within the time that it was given."""


_CLASS_OF_STATUS: Mapping[str, type[ServiceError]] = MappingProxyType(
    {
        **{cls.status: cls for cls in (InvalidRequestError, NotFoundError, PreconditionError, OverloadedError)},
        **{cls.status: cls for cls in (UnauthenticatedError, PermissionDeniedError)},
        "OUT_OF_RANGE": InvalidRequestError,
        "UNAVAILABLE": NotReadyError,
        "DEADLINE_EXCEEDED": SilentError,
        "CANCELLED": NotReadyError,
    }
)


def from_rpc_error(error: grpc.aio.AioRpcError, service: str, target: str) -> ServiceError:
    """Returns the error of rlhf.errors that a failed call stands for, its message naming the service and its target."""
    status = error.code()
    details = error.details() or status.name
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        details = "did not answer within the call's deadline"
    elif status is grpc.StatusCode.UNAVAILABLE:
        details += tls_hint(details)
    message = f"{service} at {target}: {details}"
    error_class = _CLASS_OF_STATUS.get(status.name, InternalError)
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
