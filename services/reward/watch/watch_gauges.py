"""The watch's numbers for Prometheus, worked out when they are asked for."""

from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from services.reward.watch.report import Report

_LABELS = ("model_version", "caller")
_PREFIX = "rlhf_reward_watch_"
_GAUGES = {
    "mean": ("reward_mean", "Mean of the newest rewards."),
    "drift": (
        "drift",
        "How far the newest rewards are from the caller's first ones: population stability index.",
    ),
    "length_correlation": (
        "length_correlation",
        "Rank correlation of the newest rewards and their completions' lengths.",
    ),
    "repetition_mean": ("repetition_mean", "Mean share of a completion's n-grams that repeat an earlier one in it."),
    "spread_mean": ("spread_mean", "Mean disagreement of the ensemble over the newest rewards."),
    "heldout_gap": (
        "heldout_gap",
        "How much more the reward has risen than the held-out scorer's, in standard deviations of the first ones.",
    ),
    "heldout_correlation": ("heldout_correlation", "Rank correlation of the newest rewards and held-out rewards."),
}


class WatchGauges(Collector):
    """A sample for each version and caller, and none for what is not known: a drift of 0 would be good news."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._read: Callable[[], Sequence[Report]] = tuple
        registry.register(self)
        self.heldout_items = Counter(
            "rlhf_reward_watch_heldout_items_total",
            "Sampled items by what became of them: scored, failed, or dropped since the held-out scorer was behind.",
            ["result"],
            registry=registry,
        )
        for result in ("scored", "failed", "dropped"):
            self.heldout_items.labels(result)

    def read_from(self, reports: Callable[[], Sequence[Report]]) -> None:
        """Reads the reports from a function from now on, at every scrape, in the thread that serves it."""
        self._read = reports

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Yields all gauges, without samples."""
        for name, (_, text) in _GAUGES.items():
            yield GaugeMetricFamily(_PREFIX + name, text, labels=_LABELS)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yields the gauges with what is known."""
        reports = self._read()
        for name, (field, text) in _GAUGES.items():
            family = GaugeMetricFamily(_PREFIX + name, text, labels=_LABELS)
            for report in reports:
                value: float | None = getattr(report, field)
                if value is not None:
                    family.add_metric((report.model_version, report.caller), value)
            yield family
