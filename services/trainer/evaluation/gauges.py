"""The newest evaluation of a run on Prometheus."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

EVALUATION_METRICS: Mapping[str, str] = MappingProxyType(
    {
        "step": "Steps that the policy had taken when it was evaluated last.",
        "reward_mean": "Mean reward of the completions of held-out prompts, by the run's own reward service.",
        "gold_reward_mean": "Mean reward of the same by the gold reward service; no sample while that is away.",
        "kl": "KL of the same to the reference, estimated by k1: mean over completions, in nats per completion.",
        "completion_tokens_mean": "Mean tokens of the same.",
    }
)
"""What an evaluation tells, with meaning and unit. On Prometheus each is rlhf_trainer_evaluation_<name>."""


class EvaluationGauges(Collector):
    """Has a sample for what the newest evaluation knew, and none for the rest: a gauge of 0 would be a reward of 0."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._values: Mapping[str, float] = {}
        registry.register(self)

    def set(self, values: Mapping[str, float]) -> None:
        """Takes over an evaluation; names that are no metric are passed over."""
        self._values = dict(values)

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Yields the metrics without samples."""
        for name, text in EVALUATION_METRICS.items():
            yield GaugeMetricFamily(f"rlhf_trainer_evaluation_{name}", text)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yields the metrics of which something is known."""
        values = self._values
        for name, text in EVALUATION_METRICS.items():
            if name in values:
                yield GaugeMetricFamily(f"rlhf_trainer_evaluation_{name}", text, value=values[name])
