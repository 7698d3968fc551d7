"""What one rank collected, brought to all ranks: every rank then holds the whole step."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rlhf.learning.ranks import Ranks
from rlhf.learning.sample import Sample, decode_sample, encode_sample
from services.trainer.all_ranks import exchange


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
    samples = [encode_sample(sample) for sample in part.samples.values()]
    message = {"samples": samples, "dropped": part.dropped, "seconds": part.seconds}
    return _merge(await exchange(message, ranks))


def _merge(messages: Sequence[dict[str, Any]]) -> Part:
    whole = Part()
    for message in messages:
        for sample in map(decode_sample, message["samples"]):
            whole.samples[sample.rollout.rollout_id] = sample
        whole.dropped.update(message["dropped"])
    whole.seconds = [max(times) for times in zip(*(message["seconds"] for message in messages), strict=True)]
    return whole
