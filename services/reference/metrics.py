"""The reference service's metrics."""

from prometheus_client import REGISTRY, CollectorRegistry, Counter

from rlhf.serving.batching.batch_metrics import BatchMetrics


class ReferenceMetrics:
    """Names are rlhf_reference_<what>_<base unit>; dashboards depend on them. Tests pass their own registry."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.batch = BatchMetrics("rlhf_reference", registry)
        self.items = Counter("rlhf_reference_items_total", "Items answered with log-probabilities.", registry=registry)
        self.errors = Counter(
            "rlhf_reference_errors_total", "Calls that got none, by status code.", ["code"], registry=registry
        )
