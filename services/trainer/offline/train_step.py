"""One optimizer step, or one measurement: sums over micro-batches and ranks that do not depend on how either is cut."""

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import torch

from rlhf.learning.optimizer import require_finite
from rlhf.learning.ranks import Ranks
from rlhf.models.sequences import split_by_tokens

if TYPE_CHECKING:
    from services.trainer.offline.fit import Task, Trained

Example = TypeVar("Example")


def train_step(
    task: "Task[Example]",
    trained: "Trained",
    batch: Sequence[Example],
    *,
    micro_batch_tokens: int,
    ranks: Ranks,
) -> dict[str, float]:
    """Takes one optimizer step on the batch and returns its metrics, as they were before the step.

    "loss" is the batch's, "tokens" those of its forward passes; "grad_norm" and "learning_rate" are the optimizer's.

    Raises: NonFiniteError, on all ranks together; the weights are then as they were.
    """
    task.prepare(batch)
    sums = _sums(task, batch, micro_batch_tokens, ranks, backward=True)
    require_finite("the loss", sums["loss"])
    taken = trained.step()
    metrics = {"loss": sums["loss"], **task.describe(sums), "tokens": sums["tokens"]}
    return {**metrics, "grad_norm": taken.grad_norm, "learning_rate": taken.learning_rate}


def measure(
    task: "Task[Example]", examples: Sequence[Example], *, micro_batch_tokens: int, ranks: Ranks
) -> dict[str, float]:
    """Returns "loss" and the task's metrics over the examples, at least one, taken as one batch, without gradient."""
    with torch.no_grad():
        task.prepare(examples)
        sums = _sums(task, examples, micro_batch_tokens, ranks, backward=False)
    return {"loss": sums["loss"], **task.describe(sums)}


def micro_batches(task: "Task[Example]", batch: Sequence[Example], max_tokens: int) -> list[list[Example]]:
    """Returns the examples in groups of at most max_tokens tokens; a longer example is alone."""
    groups = split_by_tokens([task.num_tokens(example) for example in batch], max_tokens)
    return [[batch[index] for index in group] for group in groups]


def _sums(
    task: "Task[Example]", batch: Sequence[Example], max_tokens: int, ranks: Ranks, *, backward: bool
) -> dict[str, float]:
    """Returns "loss", "tokens" and the task's sums over the whole batch; backward leaves its gradient behind."""
    normalizer = task.normalizer(batch)
    totals: defaultdict[str, float] = defaultdict(float)
    for share in ranks.share(micro_batches(task, batch, max_tokens)):
        loss, sums = task.loss(share.item, normalizer)
        weighted = loss * share.weight
        if backward:
            weighted.backward()  # type: ignore[no-untyped-call]
        tokens = sum(task.num_tokens(example) for example in share.item)
        for name, value in {**sums, "loss": float(loss.detach()), "tokens": float(tokens)}.items():
            # A filler counts nothing, whatever it came to: 0 * NaN is NaN.
            totals[name] += value if share.weight else 0.0
    return ranks.sum_values(totals)
