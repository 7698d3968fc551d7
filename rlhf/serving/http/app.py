"""A service's HTTP beside its gRPC: its routes as one application, served in the event loop of the gRPC server.

A service gives its routes and its section `http`; health, errors, limits, TLS, tokens and the end are seen to here.
"""

import asyncio
import contextlib
import math
import socket
import ssl
from collections.abc import Iterator, Sequence
from typing import Any

import uvicorn
from fastapi import APIRouter, FastAPI
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from rlhf.client.tls import ssl_context_for_http
from rlhf.errors import ConfigError
from rlhf.logs import get_logger
from rlhf.serving.calls import CallGuard
from rlhf.serving.config import HttpConfig
from rlhf.serving.http.calls import ANSWERER_KEY, CERTIFICATE_NAMES_KEY, Answerer
from rlhf.serving.http.errors import error_body

log = get_logger(__name__)

KEEP_ALIVE_SECONDS = 75
"""Longer than clients keep an idle connection, so that they do not send on one that is just being closed."""
BACKLOG = 2048

HEADERS = """
An error is `{"error": {"code", "message"}}`.

Headers that every call may have: `authorization: Bearer TOKEN`; `x-rlhf-caller`, a name for metrics where there is no
token; `x-request-id`, for the service's logs, and echoed; `x-request-timeout-seconds`, after which the work is dropped.
A call whose connection is closed is dropped too.
"""


class HttpServer:
    """Serves a service's routes over HTTP; a Side of rlhf.serving.server."""

    def __init__(
        self, title: str, description: str, routers: Sequence[APIRouter], config: HttpConfig, default_host: str
    ) -> None:
        """Listens nowhere yet.

        Args:
            title: the service's name, for the page of documentation.
            description: what the routes are for, in Markdown; what holds for every service is added to it.
            routers: the routes, each of a GuardedRoute.
            config: the service's section `http`.
            default_host: where to listen if the configuration names no address.
        """
        self.port = config.port
        self._about = (title, description)
        self._routers = routers
        self._config = config
        self._host = config.host or default_host
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self, guard: CallGuard) -> None:
        """Binds the port. Raises ConfigError if it is taken, or TLS is set up wrong."""
        context = ssl_context_for_http()
        listener = _listen(self._host, self._config.port)
        self.port = listener.getsockname()[1]
        config = uvicorn.Config(
            make_app(*self._about, self._routers, guard, self._config.max_body_bytes),
            http=_Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            backlog=BACKLOG,
            ssl_context_factory=None if context is None else lambda *_: context,
        )
        self._server = _Server(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]))
        while not self._server.started:
            if self._serving.done():
                self._serving.result()
                raise ConfigError(f"http.port is {self._config.port}: the HTTP server ended as it started")
            await asyncio.sleep(0.01)
        log.info("listening over http", port=self.port, tls=context is not None)

    async def stop(self, drain_seconds: float) -> None:
        """Accepts nothing more; calls in flight finish within that time, or are cancelled."""
        if self._server is None or self._serving is None:
            return
        self._server.config.timeout_graceful_shutdown = math.ceil(drain_seconds)
        self._server.should_exit = True
        await self._serving


def make_app(
    title: str, description: str, routers: Sequence[APIRouter], guard: CallGuard, max_body_bytes: int
) -> FastAPI:
    """Returns the application: the routes, those of health, and the documentation.

    Args:
        title: the service's name.
        description: what the routes are for.
        routers: the routes, each of a GuardedRoute.
        guard: what surrounds every call.
        max_body_bytes: the largest body that is read.
    """
    app = FastAPI(title=title, version="v1", description=description + HEADERS, redoc_url=None)
    setattr(app.state, ANSWERER_KEY, Answerer(guard, max_body_bytes))
    for router in (*routers, _health_routes(guard)):
        app.include_router(router)
    app.add_exception_handler(HTTPException, _no_route)
    return app


def _health_routes(guard: CallGuard) -> APIRouter:
    """Returns the routes of health: no token, no metrics, no model's thread."""
    router = APIRouter()

    @router.get("/health", tags=["health"], summary="Whether the process serves")
    async def health() -> dict[str, str]:
        """Answers 200 as long as it answers; see /ready for whether calls are served."""
        return {"status": "live"}

    @router.get("/ready", tags=["health"], summary="Whether calls are served")
    async def ready() -> Response:
        """Answers 200, or 503 and why: loading, stuck, or ending."""
        reason = guard.why_not_ready()
        if reason is None:
            return JSONResponse({"status": "ready"})
        return error_body(503, "unavailable", reason, {"retry-after": "1"})

    return router


async def _no_route(request: Request, error: Exception) -> Response:
    """Answers what has no route, in the shape of every other error."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 405:
        message = f"{path} is not for {request.method}; see /docs"
        return error_body(405, "method_not_allowed", message, error.headers)
    return error_body(error.status_code, "not_found", f"no route {path[:128]}; see /docs")


class _Server(uvicorn.Server):
    """A server whose end is somebody else's to call: it leaves the process's signals alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures nothing."""
        yield


class _Connection(H11Protocol):
    """A connection that gives its calls the names in the client's certificate."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called once TLS has let the client in."""
        super().connection_made(transport)
        tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
        if tls is not None:
            self.app = _with_names(self.app, _names_of(tls.getpeercert() or {}))


def _with_names(app: Any, names: tuple[str, ...]) -> ASGIApp:
    async def with_names(scope: Scope, receive: Receive, send: Send) -> None:
        scope[CERTIFICATE_NAMES_KEY] = names
        await app(scope, receive, send)

    return with_names


def _names_of(certificate: Any) -> tuple[str, ...]:
    """Returns a certificate's alternative names; the common name counts only where there is none, as over gRPC."""
    alternative = tuple(str(value) for _, value in certificate.get("subjectAltName", ()))
    common = (value for part in certificate.get("subject", ()) for key, value in part if key == "commonName")
    return alternative or tuple(common)


def _listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens. Raises: ConfigError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio turns Nagle's algorithm off, which would hold each answer's body back for 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        # Only connections that have ended are stepped over; a port that is listened on stays taken.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"http.port is {port} on {host}: {error.strerror}; stop the process that has it, or take a free one with "
            "--http.port 0"
        ) from None
    listener.setblocking(False)
    return listener
