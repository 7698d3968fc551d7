"""The reward service's metrics."""

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram

from rlhf_services.common.batch_metrics import BatchMetrics

_SPREAD_BUCKETS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0)
# Normalised rewards lie within 3 of 0 for the most part, so the buckets are closest there.
_SCORE_BUCKETS = (-10, -7.5, -5, -4, -3, -2.5, -2, -1.5, -1, -0.75, -0.5, -0.25, 0)
_SCORE_BUCKETS += tuple(-bound for bound in reversed(_SCORE_BUCKETS[:-1]))


class RewardMetrics:
    """Names are rlhf_reward_<what>_<base unit>; dashboards depend on them. Tests pass their own registry."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.batch = BatchMetrics("rlhf_reward", registry)
        self.items = Counter("rlhf_reward_items_total", "Items answered with a reward.", registry=registry)
        self.errors = Counter("rlhf_reward_errors_total", "Items answered with an error.", ["code"], registry=registry)
        self.score = Histogram(
            "rlhf_reward_score",
            "Rewards given. Prometheus has no _sum of values below 0: a mean comes from the trainer's own metrics.",
            buckets=_SCORE_BUCKETS,
            registry=registry,
        )
        self.spread = Histogram(
            "rlhf_reward_spread",
            "Standard deviation of an ensemble's rewards for one item, in standard deviations of the training scores.",
            buckets=_SPREAD_BUCKETS,
            registry=registry,
        )
