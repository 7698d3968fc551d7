"""The table of DPO's variants, with their arguments and, if it is a function of the margin, their loss.

A new variant is a row. Torch is imported when a loss is computed, so that configurations can read the table without it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One loss on preferences."""

    help: str
    """One sentence with the source."""
    loss: "Callable[..., Tensor] | None" = None
    """Function of (h, beta, e): h [P] the difference of the log-ratios, e label_smoothing; None for other forms."""
    takes_smoothing: bool = False
    """Whether it takes label_smoothing."""
    needs_reference: bool = True
    """Whether it needs log-probabilities under the reference."""
    averages: bool = False
    """Whether each log-ratio is divided by its completion's length."""
    takes_nll: bool = True
    """Whether the chosen completion's negative log-likelihood can be added to it."""
    usual_beta: float = 0.1
    """Default of beta."""


def negative_log_sigmoid(x: "Tensor") -> "Tensor":
    """Returns -log sigmoid(x) in the form that cannot overflow."""
    from torch.nn import functional

    return functional.softplus(-x)


def _sigmoid(h: "Tensor", beta: float, e: float) -> "Tensor":
    return (1 - e) * negative_log_sigmoid(beta * h) + e * negative_log_sigmoid(-beta * h)


def _robust(h: "Tensor", beta: float, e: float) -> "Tensor":
    return ((1 - e) * negative_log_sigmoid(beta * h) - e * negative_log_sigmoid(-beta * h)) / (1 - 2 * e)


VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "sigmoid": Variant(
            help="DPO itself (arXiv:2305.18290); with label_smoothing cDPO.", loss=_sigmoid, takes_smoothing=True
        ),
        "ipo": Variant(
            help="Squared distance of length-averaged log-ratios from a target (arXiv:2310.12036).",
            loss=lambda h, beta, e: (h - 1 / (2 * beta)).square(),
            averages=True,
        ),
        "hinge": Variant(
            help="Nothing beyond a margin of 1 (arXiv:2305.10425).", loss=lambda h, beta, e: (1 - beta * h).relu()
        ),
        "robust": Variant(
            help="Unbiased if label_smoothing is the share of wrong labels (arXiv:2403.00409).",
            loss=_robust,
            takes_smoothing=True,
        ),
        "kto": Variant(help="Completions that are good or bad by themselves (arXiv:2402.01306).", takes_nll=False),
        "simpo": Variant(
            help="Length-averaged log-probabilities and a margin (arXiv:2405.14734).",
            needs_reference=False,
            averages=True,
            usual_beta=2.0,
        ),
        "orpo": Variant(
            help="Likelihood of the chosen one and an odds ratio (arXiv:2403.07691).",
            needs_reference=False,
            averages=True,
            takes_nll=False,
        ),
    }
)
"""By name."""

PAIR_VARIANTS = tuple(name for name, each in VARIANTS.items() if each.loss is not None)
"""Variants of dpo_loss."""
SMOOTHED_VARIANTS = tuple(name for name, each in VARIANTS.items() if each.takes_smoothing)
"""Variants that take label_smoothing."""


def help_of(names: Iterable[str]) -> str:
    """Returns what each of some variants is, as the help text of a choice between them."""
    return "Form of the loss. " + " ".join(f"{name}: {VARIANTS[name].help}" for name in names)
