"""Clients of the services, for other systems to import. No torch; each name is loaded when it is first asked for."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf.client.patience import Patience
    from rlhf.client.policy import PolicyClient, PolicyModel
    from rlhf.client.reference import LogprobsBatch, LogprobsItem, ReferenceClient, ReferenceModel
    from rlhf.client.reward import RewardClient
    from rlhf.client.reward_types import (
        Comparison,
        ComparisonBatch,
        ComparisonItem,
        ComponentReward,
        LoadedModel,
        ManyScores,
        Reward,
        RewardError,
        RewardModel,
        RewardReport,
        ScoreBatch,
        ScoreItem,
    )
    from rlhf.client.sync import SyncRewardClient
    from rlhf.client.trainer import Run, StepMetrics, TrainerClient
    from rlhf.errors import InvalidRequestError, NotReadyError, OverloadedError, ServiceError
    from rlhf.rollout import Prompt, Rollout, Sampling

_NAMES = {
    "rlhf.client.patience": "Patience",
    "rlhf.client.policy": "PolicyClient PolicyModel",
    "rlhf.client.reference": "LogprobsBatch LogprobsItem ReferenceClient ReferenceModel",
    "rlhf.client.reward": "RewardClient",
    "rlhf.client.reward_types": (
        "Comparison ComparisonBatch ComparisonItem ComponentReward LoadedModel ManyScores Reward RewardError "
        "RewardModel RewardReport ScoreBatch ScoreItem"
    ),
    "rlhf.client.sync": "SyncRewardClient",
    "rlhf.client.trainer": "Run StepMetrics TrainerClient",
    "rlhf.errors": "InvalidRequestError NotReadyError OverloadedError ServiceError",
    "rlhf.rollout": "Prompt Rollout Sampling",
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = [
    "Comparison",
    "ComparisonBatch",
    "ComparisonItem",
    "ComponentReward",
    "InvalidRequestError",
    "LoadedModel",
    "LogprobsBatch",
    "LogprobsItem",
    "ManyScores",
    "NotReadyError",
    "OverloadedError",
    "Patience",
    "PolicyClient",
    "PolicyModel",
    "Prompt",
    "ReferenceClient",
    "ReferenceModel",
    "Reward",
    "RewardClient",
    "RewardError",
    "RewardModel",
    "RewardReport",
    "Rollout",
    "Run",
    "Sampling",
    "ScoreBatch",
    "ScoreItem",
    "ServiceError",
    "StepMetrics",
    "SyncRewardClient",
    "TrainerClient",
]


def __getattr__(name: str) -> Any:
    """Loads a name's module: programs that need one client, or none, such as the probe, start without the others."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
