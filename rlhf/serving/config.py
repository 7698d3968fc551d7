"""How a server is configured."""

from typing import Literal

from pydantic import Field

from rlhf.config import Port, Section


class ServerConfig(Section):
    """Where a service listens, and how it ends."""

    host: str = "0.0.0.0"
    """Address to bind."""
    port: Port = 50050
    """gRPC port; 0 takes a free one."""
    metrics_port: Port = 9050
    """HTTP port of Prometheus' /metrics; 0 takes a free one."""
    drain_seconds: float = Field(default=30.0, ge=0)
    """How long calls in flight may go on after SIGTERM."""
    max_connection_age_seconds: float = Field(default=300.0, ge=0)
    """After this long a client is asked to connect anew, so that it finds replicas that were added; calls in flight go
    on, however long they are. 0 is never."""
    max_message_bytes: int = Field(default=64 * 1024 * 1024, ge=1024)
    """Largest message sent or received."""
    slow_call_seconds: float = Field(default=5.0, ge=0)
    """A call that takes longer is logged with its method, caller and number of items; 0 logs none."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severity that is logged."""


class HttpConfig(Section):
    """Where a service is found over HTTP beside gRPC."""

    enabled: bool = True
    """Whether HTTP is served beside gRPC."""
    host: str = ""
    """Address to bind; empty is server.host."""
    port: Port = 8050
    """HTTP port; 0 takes a free one."""
    max_body_bytes: int = Field(default=64 * 1024 * 1024, ge=1024)
    """Largest body of a request."""
