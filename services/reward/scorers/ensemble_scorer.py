"""Rewards from several reward models together: what one of them alone overrates, the others hold down.

    mean            mean of the members' rewards
    worst           the lowest of them
    mean_minus_std  mean - std_coef * standard deviation (uncertainty-weighted optimisation)

Source: Coste et al. 2023, "Reward model ensembles help mitigate overoptimization", arXiv:2310.02743. Members are
compared in units of their own training scores (the normalisation stored with each), so none outweighs the others.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from rlhf.errors import ConfigError
from services.reward.scorers.model import Ids, ModelScorer
from services.reward.scorers.scorer import ErrorCode, Item, Score, ScoreError, ScorerInfo

Rule = Callable[[Sequence[float], float], float]

COMBINE_RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "mean": lambda rewards, std_coef: statistics.fmean(rewards),
        "worst": lambda rewards, std_coef: min(rewards),
        "mean_minus_std": lambda rewards, std_coef: statistics.fmean(rewards) - std_coef * statistics.pstdev(rewards),
    }
)
"""How the members' finite rewards of one completion, and std_coef, make one reward."""


class EnsembleScorer:
    """A Scorer over model scorers that read the same token ids."""

    def __init__(self, members: Sequence[ModelScorer], combine: str, std_coef: float) -> None:
        """Prepares the scorer.

        Args:
            members: at least one; combine: a key of COMBINE_RULES; std_coef: at least 0.
        Raises: ConfigError if a member has another tokenizer or chat template than the first, or the weights of one.
        """
        _require_fit(members)
        self._members = members
        self._rule = COMBINE_RULES[combine]
        self._std_coef = std_coef
        infos = [member.info for member in members]
        rule = f"{combine}({std_coef:g})" if combine == "mean_minus_std" else combine
        versions = "+".join(info.version for info in infos)
        self.info = ScorerInfo(
            name=f"{rule} of {', '.join(info.name for info in infos)}",
            version=f"{rule}:{versions}",
            tokenizer_digest=infos[0].tokenizer_digest,
            max_sequence_tokens=min(
                (info.max_sequence_tokens for info in infos if info.max_sequence_tokens), default=0
            ),
            # Each member has a scale of its own; a difference of combined rewards is taken on the mean of them.
            logit_scale=statistics.fmean(info.logit_scale for info in infos),
            pads=any(info.pads for info in infos),
        )

    def prepare(self, item: Item) -> Ids | ScoreError:
        """Returns the item as the ids of one sequence that every member takes."""
        prepared = self._members[0].prepare(item)
        for member in self._members[1:]:
            if isinstance(prepared, ScoreError):
                break
            prepared = member.checked(prepared, "the item's ids")
        return prepared

    def size_of(self, prepared: Ids) -> int:
        """Returns the length of the sequence."""
        return len(prepared)

    def score(self, batch: list[Ids]) -> list[Score | ScoreError]:
        """Returns the combined reward of each sequence and the members' spread; one forward pass a member."""
        columns = [member.score(batch) for member in self._members]
        return [self._combine(rewards) for rewards in zip(*columns, strict=True)]

    def close(self) -> None:
        """Frees the members' memory."""
        for member in self._members:
            member.close()

    def _combine(self, rewards: Sequence[float]) -> Score | ScoreError:
        for member, reward in zip(self._members, rewards, strict=True):
            # Checked before combining: the lowest of NaN and a number depends on their order.
            if not math.isfinite(reward):
                return ScoreError(
                    ErrorCode.NOT_FINITE,
                    f"member {member.info.name} answered {reward}; check its weights for NaN, leave it out of "
                    "scorer.paths, or serve with scorer.dtype float32",
                )
        return Score(self._rule(rewards, self._std_coef), statistics.pstdev(rewards))


def _require_fit(members: Sequence[ModelScorer]) -> None:
    first = members[0]
    versions: dict[str, str] = {}
    for member in members:
        info = member.info
        if member.tokenizing_digest != first.tokenizing_digest:
            raise ConfigError(
                f"scorer.paths has '{info.name}', whose tokenizer or chat template is not that of "
                f"'{first.info.name}'; an ensemble needs members that were trained from one base model"
            )
        if info.version in versions:
            raise ConfigError(
                f"scorer.paths has '{versions[info.version]}' and '{info.name}', which are the same model; members "
                "that do not differ cannot disagree: name different ones"
            )
        versions[info.version] = info.name
