"""Scores of a trained reward model, and the normalisation that is stored with it."""

import json
import math
from collections.abc import Sequence
from statistics import fmean, pstdev

import torch

from rlhf.data.preferences import PreferenceGroup
from rlhf.learning.ranks import Ranks
from rlhf.models.scalar_model import ScalarModel
from rlhf.models.sequences import split_by_tokens
from rlhf.run_errors import RunError
from services.trainer.offline.reward_model.task import group_scores


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

    Raises: RunError if all scores are equal, or one is not finite: such a model tells nothing apart.
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
