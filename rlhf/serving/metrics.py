"""The metrics that every service has, and the buckets that all times share."""

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

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
