"""The fleet on Prometheus: pushes, replicas, and what became of prompts. Tests pass their own registry."""

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from rlhf.serving.calls import SECONDS_BUCKETS
from services.trainer.fleet.replica import Replica, State

STATES: tuple[State, ...] = ("joining", "ready", "away", "set_aside")


class FleetMetrics:
    """What the trainer's side of the fleet counts."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.push_seconds = Histogram(
            "rlhf_trainer_push_seconds",
            "Time until one replica had the weights.",
            ["encoding"],
            buckets=SECONDS_BUCKETS,
            registry=registry,
        )
        self.push_bytes = Counter(
            "rlhf_trainer_push_bytes_total",
            "Bytes of weights that replicas got, from the trainer or relayed.",
            ["replica", "encoding"],
            registry=registry,
        )
        self.push_failures = Counter(
            "rlhf_trainer_push_failures_total", "Pushes that did not take effect.", ["replica"], registry=registry
        )
        self.push_changed_fraction = Gauge(
            "rlhf_trainer_push_changed_fraction",
            "Share of the weights' elements that changed from one pushed version to the next.",
            registry=registry,
        )
        self.replica_pause_seconds = Gauge(
            "rlhf_trainer_replica_pause_seconds",
            "How long the last push kept a replica from sampling.",
            ["replica"],
            registry=registry,
        )
        self.replica_version = Gauge(
            "rlhf_trainer_replica_version",
            "Version of the weights that a replica is known to serve; -1 if none is.",
            ["replica"],
            registry=registry,
        )
        self.replicas = Gauge("rlhf_trainer_replicas", "Replicas by state.", ["state"], registry=registry)
        self.prompts_redispatched = Counter(
            "rlhf_trainer_prompts_redispatched_total",
            "Prompts given to a replica after another one failed.",
            registry=registry,
        )
        self.prompts_retried = Counter(
            "rlhf_trainer_prompts_retried_total",
            "Prompts that a replica had no room for, and that are asked for again.",
            registry=registry,
        )
        self.policy_lag = LagHistogram(registry)

    def show(self, replicas: Iterable[Replica]) -> None:
        """Shows the states and versions of all replicas of the fleet."""
        counts = dict.fromkeys(STATES, 0)
        for replica in replicas:
            counts[replica.state] += 1
            version = -1 if replica.served is None else replica.served[0]
            self.replica_version.labels(replica.target).set(version)
        for state, count in counts.items():
            self.replicas.labels(state).set(count)

    def forget(self, target: str) -> None:
        """Removes what is shown of a replica that is no longer of the fleet."""
        for metric in (self.push_failures, self.replica_pause_seconds, self.replica_version, self.push_bytes):
            metric.remove_by_labels({"replica": target})


MAX_LAG = 16
"""The largest training.max_policy_lag."""


class LagHistogram(Collector):
    """Counts tokens trained on by how many versions the weights that sampled them were behind.

    A step has many tokens and few lags: prometheus_client's own histogram would be told of each token by itself.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._counts = [0] * (MAX_LAG + 1)
        registry.register(self)

    def add(self, lags: Mapping[int, int]) -> None:
        """Adds a step's tokens: how many were how far behind."""
        for lag, count in lags.items():
            self._counts[min(max(lag, 0), MAX_LAG)] += count

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Yields the histogram as it stands."""
        buckets, total = [], 0
        for lag, count in enumerate(self._counts):
            total += count
            buckets.append((str(float(lag)), float(total)))
        yield HistogramMetricFamily(
            "rlhf_trainer_policy_lag",
            "Tokens trained on, by how many versions the weights that sampled them were behind.",
            buckets=[*buckets, ("+Inf", float(total))],
            sum_value=float(sum(lag * count for lag, count in enumerate(self._counts))),
        )
