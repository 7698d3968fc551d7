"""What happens around every call, whatever it came by: who calls, the readiness gate, metrics, logs and errors."""

import asyncio
import math
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

import grpc
import structlog
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from rlhf.client.tracing import end_with, server_span
from rlhf.errors import InternalError, NotReadyError, ServiceError
from rlhf.logs import get_logger

log = get_logger(__name__)

ANY_SCOPE = "any"
"""What a method needs that has no scope of its own: to be known."""
SECONDS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Wide enough for a health probe and for a batch that is sampled on a CPU."""
MAX_NAME_CHARACTERS = 64
MAX_LOGGED_ID_CHARACTERS = 128


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a call."""

    name: str = ""
    """The name in the service's list of clients; else the one that the caller gave itself; else its host."""
    scopes: frozenset[str] = frozenset()
    """What it may do."""


@dataclass(frozen=True, slots=True)
class CallCredentials:
    """What a call brings to say who makes it."""

    authorization: str | None = None
    """The header of this name: "Bearer " and a token."""
    certificate_names: tuple[str, ...] = ()
    """Names in the client's certificate, which TLS has checked."""
    claimed_name: str | None = None
    """The header x-rlhf-caller, which nobody has checked."""
    host: str = ""
    """Where the call comes from, without a port."""

    @property
    def unchecked_name(self) -> str:
        """The claimed name, or else the host, in letters, digits, dots, hyphens and underscores, at most 64."""
        return clean_name(self.claimed_name or "") or clean_name(self.host)


class Authorizer(Protocol):
    """Says who a caller is, and whether it may do what it asks for."""

    def authorize(self, credentials: CallCredentials, scope: str) -> Caller:
        """Returns the caller. Raises: UnauthenticatedError, PermissionDeniedError."""


@dataclass(slots=True)
class ServedCall:
    """A call that is being served."""

    method: str
    caller: Caller
    request_id: str
    num_items: int | None = None
    """For the log of slow calls. Whoever learns it only while serving may set it."""


_NOBODY = Caller()
_caller: ContextVar[Caller] = ContextVar("caller", default=_NOBODY)


def current_caller() -> Caller:
    """Returns who makes the call that is being served; a caller without name and scopes outside of one."""
    return _caller.get()


def clean_name(name: str) -> str:
    """Returns a name fit for logs and metrics: [A-Za-z0-9._-], at most 64 of them."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", name[:MAX_NAME_CHARACTERS])


class RpcMetrics:
    """Calls by service, method and status code. Tests pass their own registry."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        labels = ["service", "method"]
        self.requests = Counter("rlhf_rpc_requests_total", "Calls ended.", [*labels, "code"], registry=registry)
        self.seconds = Histogram(
            "rlhf_rpc_seconds",
            "Time a call took, streaming included.",
            labels,
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        self.in_flight = Gauge("rlhf_rpc_in_flight", "Calls being served.", labels, registry=registry)
        self.ready = Gauge("rlhf_ready", "1 while the service reports SERVING, else 0.", ["service"], registry=registry)


class CallGuard:
    """Surrounds the calls of one service."""

    def __init__(
        self,
        full_name: str,
        metrics: RpcMetrics,
        why_not_ready: Callable[[], str | None],
        authorizer: Authorizer,
        scope_of_method: Mapping[str, str],
        slow_call_seconds: float = 0.0,
    ) -> None:
        """Guards nothing yet.

        Args:
            full_name: the service's full name.
            metrics: where to count.
            why_not_ready: says why no call can be served, or None.
            authorizer: says who may call.
            scope_of_method: by method, such as {"LoadModel": "admin"}; the others need ANY_SCOPE.
            slow_call_seconds: a call that takes longer is logged; 0 logs none.
        """
        self._full_name = full_name
        self._metrics = metrics
        self._why_not_ready = why_not_ready
        self._authorizer = authorizer
        self._scope_of_method = scope_of_method
        self._slow_call_seconds = slow_call_seconds or math.inf

    def why_not_ready(self) -> str | None:
        """Returns why no call can be served now; None if calls are served."""
        return self._why_not_ready()

    @asynccontextmanager
    async def around(
        self, method: str, credentials: CallCredentials, request_id: str = "", num_items: int | None = None
    ) -> AsyncIterator[ServedCall]:
        """Gives the call; what its body raises comes out as a ServiceError, logged and counted.

        Raises: UnauthenticatedError, PermissionDeniedError, NotReadyError before the body; InternalError for a fault.
        """
        call = ServedCall(method, Caller(credentials.unchecked_name), request_id or uuid.uuid4().hex, num_items)
        logged_id = call.request_id[:MAX_LOGGED_ID_CHARACTERS]
        structlog.contextvars.bind_contextvars(request_id=logged_id, method=method, caller=call.caller.name)
        previous = _caller.get()
        code = grpc.StatusCode.OK
        start = time.monotonic()
        self._metrics.in_flight.labels(self._full_name, method).inc()
        with server_span(self._full_name, method) as span:
            try:
                self._admit(call, credentials)
                yield call
            except ServiceError as error:
                code = grpc.StatusCode[error.status]
                log.warning("call refused", code=code.name, error=str(error))
                raise
            except (asyncio.CancelledError, GeneratorExit):
                code = grpc.StatusCode.CANCELLED
                raise
            except Exception as error:  # the border: the caller gets a status, the log the trace
                code = grpc.StatusCode.INTERNAL
                log.exception("call failed")
                where = f"the service's log has the details under request_id {logged_id}"
                raise InternalError(f"internal error ({type(error).__name__}); {where}") from None
            finally:
                # Not by a token: a stream that is closed from elsewhere ends in another context.
                _caller.set(previous)
                self._record(call, code, time.monotonic() - start)
                span.set_attribute("rlhf.caller", call.caller.name)
                end_with(span, code)

    def _admit(self, call: ServedCall, credentials: CallCredentials) -> None:
        """Makes the caller known to the call and to its logs. Raises if it may not be served, or not now."""
        scope = self._scope_of_method.get(call.method, ANY_SCOPE)
        call.caller = self._authorizer.authorize(credentials, scope)
        structlog.contextvars.bind_contextvars(caller=call.caller.name)
        _caller.set(call.caller)
        reason = self._why_not_ready()
        if reason is not None:
            raise NotReadyError(reason)

    def _record(self, call: ServedCall, code: grpc.StatusCode, seconds: float) -> None:
        labels = (self._full_name, call.method)
        self._metrics.in_flight.labels(*labels).dec()
        self._metrics.requests.labels(*labels, code.name).inc()
        self._metrics.seconds.labels(*labels).observe(seconds)
        log.debug("call ended", code=code.name, seconds=round(seconds, 4))
        if seconds > self._slow_call_seconds:
            items = {} if call.num_items is None else {"items": call.num_items}
            log.warning("slow call", code=code.name, seconds=round(seconds, 3), **items)
