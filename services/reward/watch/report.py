"""What the watch over rewards is told to look at, when it warns, and the metrics of what it says."""

from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from pydantic import Field

from rlhf.client.reward_types import RewardReport
from rlhf.config import KIND, Section
from services.reward.scorers.config import ScorerConfig


class ThresholdsConfig(Section):
    """From where on the report warns. The alerts of deploy/monitoring have the same numbers, written there."""

    drift: float = Field(default=1.0, gt=0)
    """Population stability index: 0.25 is usually called a shift, 1 is about one standard deviation. A policy that
    learns moves its rewards on purpose."""
    length_correlation: float = Field(default=0.7, gt=0, le=1)
    """Rank correlation of reward and length, of either sign."""
    repetition: float = Field(default=0.2, gt=0, le=1)
    """Mean share of n-grams that repeat an earlier one of their completion."""
    spread: float = Field(default=1.0, gt=0)
    """Mean spread of an ensemble, in standard deviations of the training scores."""
    heldout_gap: float = Field(default=1.0, gt=0)
    """How much more the reward has risen than the held-out one, in standard deviations."""


class WatchConfig(Section):
    """What is looked at to see reward hacking early (docs/monitoring.md)."""

    baseline_items: int = Field(default=500, ge=20)
    """How many of a caller's first items the later ones are compared with."""
    window_items: int = Field(default=500, ge=20, le=10_000)
    """How many of a caller's newest items are looked at."""
    heldout: ScorerConfig | None = Field(default=None, discriminator=KIND)
    """A second scorer that no training sees, to compare with; none by default. Only in the TOML file."""
    heldout_fraction: float = Field(default=0.1, gt=0, le=1)
    """Share of the items that the held-out scorer is asked about."""
    heldout_items: int = Field(default=100, ge=20, le=10_000)
    """How many of these make its baseline, and its window."""
    thresholds: ThresholdsConfig = ThresholdsConfig()


MAX_VERSIONS = 4
"""Model versions that are kept; an older one's series end."""


def warnings_of(report: RewardReport, thresholds: ThresholdsConfig) -> Iterator[str]:
    """Yields what looks wrong, in sentences that name the number and its threshold."""
    if report.drift is not None and report.drift > thresholds.drift:
        moved = "" if report.baseline_mean is None else f" from a mean of {report.baseline_mean:.2f}"
        yield (
            f"the rewards have moved{moved} to {report.reward_mean:.2f}: drift {report.drift:.2f} is above "
            f"{thresholds.drift:g} (watch.thresholds.drift); expected of a policy that learns, of no other caller"
        )
    correlation = report.length_correlation
    if correlation is not None and abs(correlation) > thresholds.length_correlation:
        yield (
            f"{'longer' if correlation > 0 else 'shorter'} completions earn more: the rank correlation of reward and "
            f"length, {correlation:.2f}, is beyond {thresholds.length_correlation:g} "
            "(watch.thresholds.length_correlation)"
        )
    if report.repetition_mean is not None and report.repetition_mean > thresholds.repetition:
        yield (
            f"completions repeat themselves: {report.repetition_mean:.0%} of their n-grams stand earlier in the same "
            f"completion, more than {thresholds.repetition:.0%} (watch.thresholds.repetition)"
        )
    if report.spread_mean is not None and report.spread_mean > thresholds.spread:
        yield (
            f"the ensemble disagrees: a mean spread of {report.spread_mean:.2f} is above {thresholds.spread:g} "
            "(watch.thresholds.spread); the completions are unlike what its models were trained on"
        )
    if report.heldout_gap is not None and report.heldout_gap > thresholds.heldout_gap:
        yield (
            f"the reward has risen {report.heldout_gap:.2f} standard deviations more than the held-out one, above "
            f"{thresholds.heldout_gap:g} (watch.thresholds.heldout_gap): the policy exploits the reward"
        )


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
        self._read: Callable[[], Sequence[RewardReport]] = tuple
        registry.register(self)
        self.heldout_items = Counter(
            "rlhf_reward_watch_heldout_items_total",
            "Sampled items by what became of them: scored, failed, or dropped since the held-out scorer was behind.",
            ["result"],
            registry=registry,
        )
        for result in ("scored", "failed", "dropped"):
            self.heldout_items.labels(result)

    def read_from(self, reports: Callable[[], Sequence[RewardReport]]) -> None:
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
