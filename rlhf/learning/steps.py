"""One optimizer step of one model: backward passes over this rank's micro-batches, sums over all ranks, the step."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from rlhf.learning.optimizer import require_finite
from rlhf.learning.ranks import Ranks
from rlhf.learning.totals import BatchSize, Sums, Totals
from rlhf.learning.trained_model import TrainedModel
from rlhf.run_errors import NonFiniteError


@dataclass(frozen=True, slots=True)
class MicroLoss:
    """A micro-batch's share of the loss of an optimizer step."""

    loss: Tensor
    """Carries gradient; the shares of all micro-batches add up to the whole."""
    parts: Mapping[str, Tensor]
    """Sums for metrics."""
    weight: float
    """Of this rank's Share: 0 for a filler."""


def optimizer_step(
    model: TrainedModel,
    losses: Iterable[MicroLoss],
    size: BatchSize,
    totals: Totals,
    ranks: Ranks,
    *,
    max_approx_kl: float | None = None,
) -> bool:
    """Takes a step and adds it to the totals; returns False, with none taken, if the policy has moved too far already.

    Args:
        losses: each is computed when it is its turn, so that one micro-batch's activations are held at a time.
        max_approx_kl: nats per token from the weights before the update, over the whole minibatch; None: no limit.
    Raises: NonFiniteError, on all ranks, if the loss or the gradient is not finite; the gradient is then forgotten.
    """
    sums = Sums()
    for each in losses:
        (each.loss * each.weight).backward()  # type: ignore[no-untyped-call]
        sums.add({"loss": each.loss, **each.parts}, each.weight)
    summed = sums.over(ranks)
    try:
        require_finite(f"the {model.name} loss", summed["loss"])
    except NonFiniteError:
        model.zero_grad()
        raise
    totals.add(summed, size)
    if max_approx_kl is not None and summed["approx_kl"] / size.num_tokens > max_approx_kl:
        model.zero_grad()
        return False
    totals.add_step(model.step())
    return True
