"""The reward service's metrics."""

from prometheus_client import REGISTRY, CollectorRegistry, Counter

from rlhf_services.common.batch_metrics import BatchMetrics


class RewardMetrics:
    """Names are rlhf_reward_<what>_<base unit>; dashboards depend on them. Tests pass their own registry."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.batch = BatchMetrics("rlhf_reward", registry)
        self.items = Counter("rlhf_reward_items_total", "Items answered with a reward.", registry=registry)
        self.errors = Counter("rlhf_reward_errors_total", "Items answered with an error.", ["code"], registry=registry)
