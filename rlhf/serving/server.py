"""A service as a process: it listens, loads, serves while its backend can, drains and ends.

One gRPC port with limits, health and reflection, one port for metrics, and further sides such as HTTP.
"""

import asyncio
import contextlib
import math
import signal
from collections.abc import Callable, Sequence
from typing import Protocol
from wsgiref.simple_server import WSGIServer

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from prometheus_client import REGISTRY, CollectorRegistry, start_http_server

from rlhf.client.tasks import first_of
from rlhf.client.tls import server_credentials
from rlhf.client.tracing import configure_tracing
from rlhf.errors import ConfigError, FatalError, NotReadyError, ServiceError
from rlhf.logs import configure_logging, get_logger
from rlhf.process import sleep_at_barriers
from rlhf.serving.auth import make_authorizer
from rlhf.serving.calls import CallGuard, RpcMetrics
from rlhf.serving.config import ServerConfig
from rlhf.serving.directory import Service
from rlhf.serving.interceptors import CallInterceptor
from rlhf.serving.probe import LIVE

log = get_logger(__name__)

CHECK_SECONDS = 1.0
FATAL_GRACE_SECONDS = 2.0
"""Long enough for callers to be told why before the process ends."""


class Backend(Protocol):
    """What stands behind a service: its model and engine."""

    async def load(self) -> None:
        """Makes the backend able to serve. Raises ConfigError if it never will be."""

    async def check(self) -> None:
        """Returns if calls can be served now. Raises NotReadyError if not, FatalError if never again here."""

    async def close(self) -> None:
        """Frees everything. Called once, also after a load() that failed."""


class Side(Protocol):
    """Another way to the same service, such as HTTP: it lives and ends with the gRPC server."""

    async def start(self, guard: CallGuard) -> None:
        """Binds its port, and puts the guard around every call. Raises ConfigError if the port is taken."""

    async def stop(self, drain_seconds: float) -> None:
        """Accepts nothing more, and lets calls in flight finish within that time."""


class ServiceServer:
    """One service on one port, with health, reflection, metrics and drain."""

    def __init__(
        self,
        service: Service,
        config: ServerConfig,
        register: Callable[[grpc.aio.Server], None],
        backend: Backend,
        *,
        registry: CollectorRegistry = REGISTRY,
        sides: Sequence[Side] = (),
    ) -> None:
        """Listens nowhere yet.

        Args:
            service: its row in the directory.
            config: where to listen.
            register: adds the servicer to a server.
            backend: what stands behind the servicer.
            registry: where its metrics go.
            sides: other ways to the same service.
        """
        self.port = config.port
        self.metrics_port = config.metrics_port
        self.failure: BaseException | None = None
        self._service = service
        self._config = config
        self._register = register
        self._backend = backend
        self._registry = registry
        self._sides = sides
        self._metrics = RpcMetrics(registry)
        self._reason: str | None = f"the {service.name} service is still loading; retry when its health is SERVING"
        self._health = health.aio.HealthServicer()
        self._ready = asyncio.Event()
        self._ended = asyncio.Event()
        self._lifecycle: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Binds the ports and begins to load. Raises ConfigError if a port is taken, or security is set up wrong."""
        config = self._config
        # The ports first: a process that cannot listen should not load a model for a minute before it says so.
        credentials = server_credentials()
        guard = CallGuard(
            self._service.full_name,
            self._metrics,
            lambda: self._reason,
            make_authorizer(),
            self._service.scope_of_method,
            config.slow_call_seconds,
        )
        self._server = make_grpc_server(config, CallInterceptor(self._service.full_name, guard))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._register(self._server)
        reflection.enable_server_reflection(
            (self._service.full_name, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )
        await self._set_serving(False)
        await self._health.set(LIVE, health_pb2.HealthCheckResponse.SERVING)
        self.port = bind_grpc(self._server, config, credentials)
        self._http = serve_metrics(config, self._registry)
        self.metrics_port = self._http.server_port
        for side in self._sides:
            await side.start(guard)
        await self._server.start()
        log.info(
            "listening",
            service=self._service.name,
            port=self.port,
            metrics_port=self.metrics_port,
            tls=credentials is not None,
        )
        self._lifecycle = asyncio.create_task(self._load_and_watch())

    async def wait_ready(self) -> None:
        """Returns once the service is SERVING. Raises whatever load() raised."""
        await first_of(self._ready.wait(), self._ended.wait())
        if self.failure is not None:
            raise self.failure

    async def wait_ended(self) -> None:
        """Returns once the backend has failed for good; `failure` says why."""
        await self._ended.wait()

    async def stop(self) -> None:
        """Refuses new calls, lets those in flight finish within drain_seconds, and frees everything."""
        self._reason = f"the {self._service.name} service is shutting down"
        await self._set_serving(False)
        drain_seconds = self._config.drain_seconds
        await asyncio.gather(self._server.stop(drain_seconds), *(side.stop(drain_seconds) for side in self._sides))
        if self._lifecycle is not None:
            self._lifecycle.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._lifecycle
        await self._backend.close()
        self._http.shutdown()
        self._http.server_close()

    async def _load_and_watch(self) -> None:
        try:
            await self._backend.load()
            while True:
                await self._check()
                await asyncio.sleep(CHECK_SECONDS)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001 - kept for the process's last words; nothing is swallowed
            self.failure = error
            self._reason = str(error)
            await self._set_serving(False)
            self._ended.set()

    async def _check(self) -> None:
        try:
            await self._backend.check()
        except FatalError:
            raise
        except NotReadyError as error:
            if self._ready.is_set():
                log.error("not ready", error=str(error))
            self._reason = str(error)
            self._ready.clear()
            await self._set_serving(False)
        else:
            if not self._ready.is_set():
                log.info("serving")
            self._reason = None
            await self._set_serving(True)
            self._ready.set()

    async def _set_serving(self, serving: bool) -> None:
        states = health_pb2.HealthCheckResponse
        status = states.SERVING if serving else states.NOT_SERVING
        await self._health.set(self._service.full_name, status)
        await self._health.set("", status)
        self._metrics.ready.labels(self._service.full_name).set(serving)


def run_service(
    service: Service,
    config: ServerConfig,
    register: Callable[[grpc.aio.Server], None],
    backend: Backend,
    *,
    sides: Sequence[Side] = (),
) -> int:
    """Serves until SIGTERM, SIGINT or a failure; returns the exit code: 0 drained, 1 failed, 2 wrong configuration."""
    configure_logging(config.log_level, service.name)
    configure_tracing(service.name)
    sleep_at_barriers()
    return asyncio.run(_serve(ServiceServer(service, config, register, backend, sides=sides)))


async def _serve(server: ServiceServer) -> int:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stopped.set)
    await server.start()
    await first_of(stopped.wait(), server.wait_ended())
    failure = server.failure
    if failure is not None:
        log.error("failed", error=str(failure), exc_info=None if isinstance(failure, ServiceError) else failure)
        await asyncio.sleep(0 if isinstance(failure, ConfigError) else FATAL_GRACE_SECONDS)
    else:
        log.info("draining")
    await server.stop()
    if isinstance(failure, ConfigError):
        raise failure
    return 0 if failure is None else 1


def make_grpc_server(config: ServerConfig, interceptor: grpc.aio.ServerInterceptor) -> grpc.aio.Server:
    """Returns a server with the configured limits, bound to nothing."""
    options = [
        ("grpc.max_send_message_length", config.max_message_bytes),
        ("grpc.max_receive_message_length", config.max_message_bytes),
        ("grpc.so_reuseport", 0),  # else a second process shares the port in silence
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),  # our clients' keepalive is 20 s
        ("grpc.http2.max_ping_strikes", 0),
    ]
    if config.max_connection_age_seconds > 0:
        # No grace is set: without one, streams on an old connection are never cut.
        options.append(("grpc.max_connection_age_ms", math.ceil(1000 * config.max_connection_age_seconds)))
    return grpc.aio.server(interceptors=[interceptor], options=options)


def bind_grpc(server: grpc.aio.Server, config: ServerConfig, credentials: grpc.ServerCredentials | None) -> int:
    """Returns the port that the server is bound to. Raises: ConfigError if it is taken."""
    address = f"{config.host}:{config.port}"
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError:
        raise _port_taken("server.port", config.port) from None


def serve_metrics(config: ServerConfig, registry: CollectorRegistry) -> WSGIServer:
    """Returns what serves the metrics, in a thread of its own. Raises: ConfigError if the port is taken."""
    try:
        server, _ = start_http_server(config.metrics_port, config.host, registry)
    except OSError:
        raise _port_taken("server.metrics_port", config.metrics_port) from None
    return server


def _port_taken(field: str, port: int) -> ConfigError:
    return ConfigError(
        f"{field} is {port}: already in use; stop the process that has it, or take a free one with --{field} 0"
    )
