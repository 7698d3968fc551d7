"""The loss of reward models: Bradley-Terry over the choices of each prompt, one forward pass a completion."""

from collections.abc import Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from rlhf.algorithms.preference import bradley_terry_loss
from rlhf.data.preferences import Choice, PreferenceGroup
from rlhf.models.scalar_model import ScalarModel
from rlhf.models.sequences import pad_sequences
from rlhf.models.token_scores import sequence_scores
from services.trainer.offline.pair_statistics import hit


class RewardModelTask:
    """A fit.Task. The loss of a prompt is the mean over its choices, that of a batch the mean over its prompts.

    So a prompt weighs the same whether two of its completions were ranked or nine (InstructGPT, arXiv:2203.02155, eq.
    1, where the sum over the pairs of a prompt is divided by K(K-1)/2); with pairs it is the mean over pairs.
    """

    def __init__(self, model: ScalarModel, center_coef: float = 0.0) -> None:
        """Args: the model in training; the weight of the centring."""
        self._model = model
        self._center_coef = center_coef

    def num_tokens(self, example: PreferenceGroup) -> int:
        """Returns the tokens of the forward passes over all completions of the prompt."""
        return example.num_tokens

    def normalizer(self, batch: Sequence[PreferenceGroup]) -> float:
        """Returns the number of prompts."""
        return float(len(batch))

    def prepare(self, batch: Sequence[PreferenceGroup]) -> None:
        """Does nothing: a prompt's loss depends on no other."""

    def loss(self, micro: Sequence[PreferenceGroup], normalizer: float) -> tuple[Tensor, Mapping[str, float]]:
        """Returns the prompts' share of the loss, and sums of what describe() needs."""
        scores = group_scores(self._model, micro)
        choices, weights, chosen, rejected = _flatten(micro)
        device = scores.device
        margin = torch.tensor([choice.margin for choice in choices], device=device)
        target = torch.tensor([choice.target for choice in choices], device=device)
        weight = torch.tensor(weights, device=device)
        better, worse = scores[chosen], scores[rejected]
        losses = bradley_terry_loss(better, worse, margin, self._center_coef, target)
        differences = (better - worse).detach().tolist()
        # Where both sides are equally good nothing is right or wrong; such a choice counts half.
        hits = [hit(d) if c.target != 0.5 else 0.5 for d, c in zip(differences, choices, strict=True)]
        sums = {
            "hits": sum(w * h for w, h in zip(weights, hits, strict=True)),
            "differences": sum(w * d for w, d in zip(weights, differences, strict=True)),
            "prompts": float(len(micro)),
            "pairs": float(len(choices)),
        }
        return (losses * weight).sum() / normalizer, sums

    def describe(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Returns the share of choices ranked right, the mean score difference, and how many choices there were."""
        return {
            "accuracy": sums["hits"] / sums["prompts"],
            "margin": sums["differences"] / sums["prompts"],
            "pairs": sums["pairs"],
        }


def group_scores(model: ScalarModel, groups: Sequence[PreferenceGroup]) -> Tensor:
    """Returns the score of every completion of the groups, one after the other, [N]. Carries gradient where enabled."""
    prompts = [group.prompt_ids for group in groups for _ in group.completions]
    completions = [completion for group in groups for completion in group.completions]
    sequences = pad_sequences(prompts, completions).to(next(model.parameters()).device)
    return sequence_scores(model, sequences)


def _flatten(groups: Sequence[PreferenceGroup]) -> tuple[list[Choice], list[float], list[int], list[int]]:
    """Returns the choices of the groups, the weight of each within its group, and the places of its two scores."""
    starts = [0, *accumulate(len(group.completions) for group in groups)]
    placed = [(start, group, choice) for start, group in zip(starts, groups, strict=False) for choice in group.choices]
    return (
        [choice for _, _, choice in placed],
        [1.0 / len(group.choices) for _, group, _ in placed],
        [start + choice.chosen for start, _, choice in placed],
        [start + choice.rejected for start, _, choice in placed],
    )
