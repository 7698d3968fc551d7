"""What a service listens on: gRPC with its limits, and the port of its metrics."""

import math
from wsgiref.simple_server import WSGIServer

import grpc
from prometheus_client import CollectorRegistry, start_http_server

from rlhf.config import ServerConfig
from rlhf.errors import ConfigError


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
