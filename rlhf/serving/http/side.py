"""The gateway's server: uvicorn in the event loop of the gRPC server, and with its end."""

import asyncio
import contextlib
import math
import socket
import ssl
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from rlhf.client.tls import ssl_context_for_http
from rlhf.errors import ConfigError
from rlhf.logs import get_logger
from rlhf.serving.calls import CallGuard
from rlhf.serving.http.calls import CERTIFICATE_NAMES_KEY
from services.reward.config import HttpConfig
from services.reward.core import RewardCore
from services.reward.http import make_app

log = get_logger(__name__)

KEEP_ALIVE_SECONDS = 75
"""Longer than clients keep an idle connection, so that they do not send on one that is just being closed."""
BACKLOG = 2048


class HttpGateway:
    """Serves a core over HTTP; a Side of common.serving."""

    def __init__(self, core: RewardCore, config: HttpConfig, default_host: str) -> None:
        """Listens nowhere yet. Args: default_host: where the configuration names none."""
        self.port = config.port
        self._core = core
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
            make_app(self._core, guard, self._config.max_body_bytes),
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


class _Server(uvicorn.Server):
    """A server whose end is somebody else's to call: it leaves the process's signals alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Captures nothing."""
        yield


class _Connection(H11Protocol):
    """A connection that tells its calls the names in the client's certificate."""

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
