"""Gauges that have no sample before there is something to say."""

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector


class LateGauges(Collector):
    """Has a sample for what is known, and none for the rest: a gauge of 0 would be a reward, or a KL, of 0."""

    def __init__(self, prefix: str, texts: Mapping[str, str], registry: CollectorRegistry) -> None:
        """Args: prefix: of all names on Prometheus. texts: names without it, and what they mean."""
        self._prefix, self._texts = prefix, dict(texts)
        self._values: Mapping[str, float] = {}
        registry.register(self)

    def set(self, values: Mapping[str, float]) -> None:
        """Takes over what is known now, instead of what was; names that are not ours are passed over."""
        self._values = dict(values)

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Yields all gauges, without samples."""
        for name, text in self._texts.items():
            yield GaugeMetricFamily(self._prefix + name, text)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yields the gauges of which something is known."""
        values = self._values
        for name, text in self._texts.items():
            if name in values:
                yield GaugeMetricFamily(self._prefix + name, text, value=values[name])
