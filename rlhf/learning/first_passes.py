"""What the forward passes before an update found, brought together from all micro-batches and ranks."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf.learning.algorithm import Forward, Scored
from rlhf.learning.batch import Batch, MicroBatch
from rlhf.learning.optimizer import require_finite
from rlhf.learning.ranks import Ranks, Share


def gather_scored(
    batch: Batch,
    shares: Sequence[Share[MicroBatch]],
    forwards: Sequence[Forward],
    values: Sequence[Tensor],
    ranks: Ranks,
    *,
    rewards: Tensor,
    kl_coef: float,
) -> Scored:
    """Returns the whole batch as [B, T], on every rank.

    Args:
        shares: this rank's micro-batches; forwards: their passes; values: a separate critic's of each, or none at all.
        rewards: [B], after shaping. kl_coef: of this step.
    Raises: NonFiniteError, on all ranks, if a model's numbers are not finite.
    """
    has_values = bool(values) or forwards[0].values is not None
    old_logprobs, entropies, old_values = (torch.zeros_like(batch.sampler_logprobs) for _ in range(3))
    for index, (share, forward) in enumerate(zip(shares, forwards, strict=True)):
        if share.weight == 0:
            continue  # another rank has it
        share.item.put(forward.logprobs.detach(), old_logprobs)
        if forward.entropies is not None:
            share.item.put(forward.entropies.detach(), entropies)
        value = values[index] if values else forward.values
        if value is not None:
            share.item.put(value.detach(), old_values)
    for tensor in (old_logprobs, entropies, old_values):
        ranks.sum_(tensor)
    require_finite("the sum of the policy's log-probabilities", old_logprobs.sum())
    require_finite("the sum of the critic's values", old_values.sum())
    return Scored(
        rewards=rewards,
        old_logprobs=old_logprobs,
        entropies=entropies,
        old_values=old_values if has_values else None,
        kl_coef=kl_coef,
    )
