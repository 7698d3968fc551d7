"""The loss of reward models: Bradley-Terry over the choices of each prompt, one forward pass a completion."""

import json
import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from statistics import fmean, pstdev

import torch
from torch import Tensor

from rlhf.algorithms.preference import bradley_terry_loss
from rlhf.data.preferences import Choice, PreferenceGroup
from rlhf.errors import RunError
from rlhf.learning.ranks import Ranks
from rlhf.models.scalar_model import ScalarModel, sequence_scores
from rlhf.models.sequences import pad_sequences, split_by_tokens
from services.trainer.offline.fit import Task
from services.trainer.offline.reward_model.accuracy import hit


class RewardModelTask(Task[PreferenceGroup]):
    """The loss of a prompt is the mean over its choices, that of a batch the mean over its prompts.

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


def score_groups(
    model: ScalarModel, groups: Sequence[PreferenceGroup], *, max_tokens: int, ranks: Ranks
) -> list[float]:
    """Returns the score of every completion of the groups, one after the other; the ranks share the work.

    Args:
        model: whole on every rank, the same on all.
        max_tokens: most tokens of one forward pass.
    Raises: RunError on all ranks if a score is not finite.
    """
    mine = range(ranks.rank, len(groups), ranks.world_size)
    scores: dict[int, list[float]] = {}
    with torch.inference_mode():
        for positions in split_by_tokens([groups[index].num_tokens for index in mine], max_tokens):
            batch = [mine[position] for position in positions]
            flat = iter(group_scores(model, [groups[index] for index in batch]).tolist())
            scores |= {index: [next(flat) for _ in groups[index].completions] for index in batch}
    for part in ranks.gather_bytes(json.dumps(list(scores.items())).encode()):
        scores |= dict(json.loads(part))
    all_scores = [score for index in range(len(groups)) for score in scores[index]]
    broken = sum(not math.isfinite(score) for score in all_scores)
    if broken:
        raise RunError(
            f"the trained model scores {broken} of {len(all_scores)} completions with NaN or infinity; lower "
            "optimizer.learning_rate, or train with model.dtype float32"
        )
    return all_scores


def normalize(
    model: ScalarModel, groups: Sequence[PreferenceGroup], *, max_tokens: int, ranks: Ranks
) -> tuple[float, float]:
    """Makes the completions of the groups score mean 0, std 1; returns the mean and std they had.

    Raises: RunError if all scores are equal, or one is not finite: such a model scores all alike.
    """
    scores = score_groups(model, groups, max_tokens=max_tokens, ranks=ranks)
    mean, std = fmean(scores), pstdev(scores)
    if not std > 0:
        raise RunError(
            f"the scores of the training completions have standard deviation {std}: nothing was learned; train for "
            "more steps, or with a higher optimizer.learning_rate"
        )
    model.set_normalization(mean, std)
    return mean, std
