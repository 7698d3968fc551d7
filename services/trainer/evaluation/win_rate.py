"""Win rates: how often one policy's completion of a prompt is scored above another's."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from services.trainer.evaluation.evaluate import Evaluation, EvaluationRow
from services.trainer.evaluation.intervals import MeanWithInterval, clustered_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class WinRate:
    """How often one policy beats another in the eyes of a reward service or judge."""

    rate: MeanWithInterval
    """Mean over all pairs of 1 for a win, 1/2 for a tie, 0 for a loss; its interval is clustered by prompt."""
    wins: int
    ties: int
    losses: int
    num_prompts: int
    """That both policies have a completion of."""


def win_rate(rows: Sequence[EvaluationRow], baseline: Sequence[EvaluationRow], reward: str) -> WinRate | None:
    """Returns how often completions score above the baseline's completions of the same prompt.

    Every sample of a prompt meets every sample of the baseline for it: all these pairs use all that was sampled, and
    the interval by prompts allows for their being alike.

    Args:
        reward: the name of the reward service whose scores decide.
    Returns None if the two share no prompt.
    """
    scores, others = _scores_by_prompt(rows, reward), _scores_by_prompt(baseline, reward)
    prompts = sorted(scores.keys() & others.keys())
    outcomes = [
        (prompt, 1.0 if score > other else 0.5 if score == other else 0.0)
        for prompt in prompts
        for score in scores[prompt]
        for other in others[prompt]
    ]
    if not outcomes:
        return None
    values = [value for _, value in outcomes]
    return WinRate(
        rate=clustered_mean(values, [prompt for prompt, _ in outcomes]),
        wins=values.count(1.0),
        ties=values.count(0.5),
        losses=values.count(0.0),
        num_prompts=len(prompts),
    )


def win_rates(evaluations: Mapping[str, Evaluation]) -> dict[str, dict[str, WinRate]]:
    """Returns, by policy and by reward service, the win rate of every policy against the first one."""
    (_, first), *others = evaluations.items()
    return {
        name: {
            reward: rate
            for reward in _reward_names(evaluation)
            if (rate := win_rate(evaluation.rows, first.rows, reward)) is not None
        }
        for name, evaluation in others
    }


def _reward_names(evaluation: Evaluation) -> list[str]:
    return sorted({name for row in evaluation.rows for name in row.rewards})


def _scores_by_prompt(rows: Sequence[EvaluationRow], reward: str) -> dict[int, list[float]]:
    scores: defaultdict[int, list[float]] = defaultdict(list)
    for row in rows:
        if reward in row.rewards:
            scores[row.prompt_index].append(row.rewards[reward])
    return dict(scores)
