"""Sums over micro-batches, ranks and optimizer steps, from which the metrics of an update are made."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlhf.errors import NonFiniteError
from rlhf.learning.optimizer import OptimizerStep, require_finite
from rlhf.learning.ranks import Ranks
from rlhf.learning.trained_model import TrainedModel


@dataclass(frozen=True, slots=True)
class BatchSize:
    """What an optimizer step's loss is divided by: counts over all its micro-batches and ranks."""

    num_tokens: int
    num_sequences: int

    @classmethod
    def of(cls, mask: Tensor, rows: list[int]) -> "BatchSize":
        """Returns the counts of the trained tokens of these rows."""
        tokens = mask[torch.tensor(rows, device=mask.device)].sum(-1)
        return cls(int(tokens.sum()), int((tokens > 0).sum()))


@dataclass(slots=True)
class Totals:
    """Sums over the optimizer steps of one model in one update; where there was none, all that is said of them is 0."""

    num_minibatches: int = 0
    """Whose losses were computed."""
    num_steps: int = 0
    """That were taken: one less than num_minibatches after an early stop."""
    learning_rate: float = 0.0
    _num_tokens: int = 0
    _num_sequences: int = 0
    _grad_norm: float = 0.0
    _sums: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, sums: Mapping[str, float], size: BatchSize) -> None:
        """Adds a minibatch, its sums taken over all ranks."""
        self.num_minibatches += 1
        self._num_tokens += size.num_tokens
        self._num_sequences += size.num_sequences
        for name, value in sums.items():
            self._sums[name] += value

    def add_step(self, step: OptimizerStep) -> None:
        """Adds a step that was taken."""
        self.num_steps += 1
        self._grad_norm += step.grad_norm
        self.learning_rate = step.learning_rate

    @property
    def grad_norm(self) -> float:
        """Mean over the steps."""
        return self._grad_norm / max(1, self.num_steps)

    def per_minibatch(self, name: str) -> float:
        """Returns a sum over the number of minibatches: the mean of a loss."""
        return self._sums[name] / max(1, self.num_minibatches)

    def per_token(self, name: str) -> float:
        """Returns a sum over the number of trained tokens."""
        return self._sums[name] / max(1, self._num_tokens)

    def per_sequence(self, name: str) -> float:
        """Returns a sum over the number of trained completions."""
        return self._sums[name] / max(1, self._num_sequences)


@dataclass(frozen=True, slots=True)
class MicroLoss:
    """A micro-batch's share of the loss of an optimizer step."""

    loss: Tensor
    """Carries gradient; the shares of all micro-batches add up to the whole."""
    parts: Mapping[str, Tensor | float]
    """Sums for metrics, with the same names in every micro-batch of every rank."""
    weight: float
    """Of this rank's Share: 0 for a filler."""


def sum_losses(losses: Iterable[MicroLoss], ranks: Ranks, *, backward: bool = True) -> dict[str, float]:
    """Returns "loss" and the parts, each added up over all micro-batches and ranks.

    Args:
        losses: each is computed when it is its turn, so that one micro-batch's activations are held at a time.
        backward: whether to leave the gradient of the whole behind.
    """
    sums: defaultdict[str, float] = defaultdict(float)
    for each in losses:
        if backward:
            (each.loss * each.weight).backward()  # type: ignore[no-untyped-call]
        for name, value in {"loss": each.loss, **each.parts}.items():
            # A filler counts nothing, whatever it came to: 0 * NaN is NaN.
            sums[name] += float(value.detach() if isinstance(value, Tensor) else value) if each.weight else 0.0
    return ranks.sum_values(sums)


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
        losses: as in sum_losses.
        max_approx_kl: nats per token from the weights before the update, over the whole minibatch; None: no limit.
    Raises: NonFiniteError, on all ranks, if the loss or the gradient is not finite; the gradient is then forgotten.
    """
    sums = sum_losses(losses, ranks)
    try:
        require_finite(f"the {model.name} loss", sums["loss"])
    except NonFiniteError:
        model.zero_grad()
        raise
    totals.add(sums, size)
    if max_approx_kl is not None and sums["approx_kl"] / size.num_tokens > max_approx_kl:
        model.zero_grad()
        return False
    totals.add_step(model.step())
    return True
