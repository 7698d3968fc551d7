"""What one rank collected, brought to all ranks: every rank then holds the whole step."""

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf.errors import NotReadyError, RunError, ServiceError
from rlhf.learning.ranks import Ranks
from rlhf.learning.sample import Sample, decode_sample, encode_sample


@dataclass(slots=True, kw_only=True)
class Part:
    """What a rank collected for its share of the prompts."""

    samples: dict[str, Sample] = field(default_factory=dict)
    """By rollout_id."""
    dropped: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    """How long it waited, for one thing after another; the ranks wait side by side, so the longest counts."""


async def gather(part: Part, ranks: Ranks) -> Part:
    """Returns the parts of all ranks as one. Raises: RunError or NotReadyError if another rank sent its failure."""
    if ranks.world_size == 1:
        return part
    return _merge(await _exchange(_encode(part), ranks))


async def gather_failure(error: ServiceError | RunError, ranks: Ranks) -> None:
    """Lets the other ranks know that this one has no part to send: instead of waiting for it, they fail as well."""
    if ranks.world_size > 1:
        await _exchange({"failure": str(error), "is_service": isinstance(error, ServiceError)}, ranks)


async def gather_success(ranks: Ranks) -> None:
    """Waits until all ranks have come as far as this one. Raises: as gather(), if one sent its failure instead."""
    await gather(Part(), ranks)


async def _exchange(message: dict[str, Any], ranks: Ranks) -> list[dict[str, Any]]:
    # In a thread: the slowest rank may take minutes, and the TrainerService must answer meanwhile.
    gathered = await asyncio.to_thread(ranks.gather_bytes, json.dumps(message).encode())
    return [json.loads(each) for each in gathered]


def _encode(part: Part) -> dict[str, Any]:
    samples = [encode_sample(sample) for sample in part.samples.values()]
    return {"samples": samples, "dropped": part.dropped, "seconds": part.seconds}


def _merge(messages: Sequence[dict[str, Any]]) -> Part:
    whole = Part()
    for rank, message in enumerate(messages):
        if "failure" in message:
            error_class = NotReadyError if message["is_service"] else RunError
            raise error_class(f"rank {rank}: {message['failure']}")
        for sample in map(decode_sample, message["samples"]):
            whole.samples[sample.rollout.rollout_id] = sample
        whole.dropped.update(message["dropped"])
    whole.seconds = [max(times) for times in zip(*(message["seconds"] for message in messages), strict=True)]
    return whole
