"""The newest evaluation of a run on Prometheus."""

from collections.abc import Mapping
from types import MappingProxyType

from prometheus_client import CollectorRegistry

from services.trainer.telemetry.late_gauges import LateGauges

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


def evaluation_gauges(registry: CollectorRegistry) -> LateGauges:
    """Returns the gauges; what the newest evaluation did not know has no sample."""
    return LateGauges("rlhf_trainer_evaluation_", EVALUATION_METRICS, registry)
