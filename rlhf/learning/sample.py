"""A sample: what an online algorithm learns from, a rollout with its rewards and reference log-probabilities.

As JSON and back every float is as it was: Python writes the shortest digits that read the same.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rlhf.rollout import Rollout

TRAINING_REWARD = "reward"
"""The name of the run's own reward service, whose rewards are trained on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A rollout with all that training needs to know about it; every number is finite."""

    rollout: Rollout
    rewards: dict[str, float]
    """By the name of the reward service that gave it."""
    ref_logprobs: list[float]
    """Nats under the reference policy, one for each completion token."""
    spreads: dict[str, float] = field(default_factory=dict)
    """Standard deviation of the members' rewards, by name, from those reward services that are ensembles."""

    @property
    def reward(self) -> float:
        """What the run's own reward service gave."""
        return self.rewards[TRAINING_REWARD]

    @property
    def spread(self) -> float | None:
        """What the run's own reward service said of it; None from a single scorer."""
        return self.spreads.get(TRAINING_REWARD)


def encode_sample(sample: Sample) -> dict[str, Any]:
    """Returns what json.dumps takes."""
    return {
        "rollout": asdict(sample.rollout),
        "rewards": sample.rewards,
        "ref_logprobs": sample.ref_logprobs,
        "spreads": sample.spreads,
    }


def decode_sample(value: Mapping[str, Any]) -> Sample:
    """Returns the sample that encode_sample was given. Raises: KeyError or TypeError if it was none."""
    return Sample(
        rollout=Rollout(**value["rollout"]),
        rewards=value["rewards"],
        ref_logprobs=value["ref_logprobs"],
        spreads=value.get("spreads", {}),  # journals of earlier versions have none
    )
