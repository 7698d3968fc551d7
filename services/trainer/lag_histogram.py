"""Tokens by policy lag, as a Prometheus histogram that takes a whole step at once."""

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

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
