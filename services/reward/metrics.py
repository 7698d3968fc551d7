"""The reward service's metrics."""

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram

from rlhf_services.common.batch_metrics import BatchMetrics

_SPREAD_BUCKETS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)


class RewardMetrics:
    """Names are rlhf_reward_<what>_<base unit>; dashboards depend on them. Tests pass their own registry."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.batch = BatchMetrics("rlhf_reward", registry)
        self.items = Counter("rlhf_reward_items_total", "Items answered with a reward.", registry=registry)
        self.errors = Counter("rlhf_reward_errors_total", "Items answered with an error.", ["code"], registry=registry)
        self.spread = Histogram(
            "rlhf_reward_spread",
            "Standard deviation of an ensemble's rewards for one item, in standard deviations of the training scores.",
            buckets=_SPREAD_BUCKETS,
            registry=registry,
        )
