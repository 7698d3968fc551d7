"""JSON logs on stderr, one object a line, with the request id of the call being served."""

import logging
import sys

import structlog
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram


def configure_logging(level: str, service: str) -> None:
    """Sends this process's logs, those of libraries included, to stderr as JSON lines that name the service."""
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(service=service)
    shared: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    """Returns the logger of a module: `log = get_logger(__name__)`, then `log.info("what happened", key=value)`."""
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


SECONDS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
"""Wide enough for a health probe and for a batch that is sampled on a CPU."""


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
