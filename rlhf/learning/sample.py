"""Samples as JSON and back, every float as it was: Python writes the shortest digits that read the same."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rlhf.rollout import Rollout
from services.trainer.rollouts.scoring import Sample


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
