"""The simulated labeller: likes a short, finished answer, and errs at a known rate.

The rule, in full. The score of a completion is 1 if it has at most twenty words (what whitespace separates) and ends
like a sentence, with a full stop, an exclamation or question mark, perhaps in quotes; else it is 0. Of two completions
the labeller chooses the one with the higher score; then, with probability 0.1, independently for each pair, it names
the other one instead. Pairs whose scores are equal are left out, as a person would skip them. It never looks at the
prompt. The reward model is trained on these choices alone; the score is only used to report how far the policy came.
"""

import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

NOISE_RATE = 0.1
SHORT_AND_FINISHED = r"""\A\s*(?:\S+\s+){0,19}\S*[.!?]["')]?\s*\Z"""
"""Matches what the labeller likes; the true score is the reward service's `pattern` rule with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledPair:
    """A choice between two completions of one prompt."""

    prompt: str
    """What the user said."""
    chosen: str
    """The completion that the labeller named."""
    rejected: str
    """The other one."""
    is_flipped: bool
    """Whether the noise turned the choice around."""


def true_score(text: str) -> float:
    """Returns 1 for a short, finished text, else 0."""
    return 1.0 if re.search(SHORT_AND_FINISHED, text) else 0.0


def label_pairs(
    candidates: Iterable[tuple[str, str, str]],
    *,
    seed: int,
    noise_rate: float = NOISE_RATE,
    score: Callable[[str], float] = true_score,
) -> tuple[list[LabelledPair], int]:
    """The labeller's choices, and the number of pairs it skipped because their scores are equal.

    Args:
        candidates: (prompt, one completion, another completion).
        seed: of the noise; one draw for each pair that is not skipped.
        noise_rate: probability in [0, 1] that a choice is turned around.
        score: the rule.
    """
    noise = random.Random(seed)
    pairs: list[LabelledPair] = []
    num_skipped = 0
    for prompt, first, second in candidates:
        first_score, second_score = score(first), score(second)
        if first_score == second_score:
            num_skipped += 1
            continue
        is_flipped = noise.random() < noise_rate
        first_is_chosen = (first_score > second_score) != is_flipped
        chosen, rejected = (first, second) if first_is_chosen else (second, first)
        pairs.append(LabelledPair(prompt=prompt, chosen=chosen, rejected=rejected, is_flipped=is_flipped))
    return pairs, num_skipped


def pattern_score(pattern: str) -> Callable[[str], float]:
    """Returns the rule that gives 1 where a regular expression is found, else 0."""
    compiled = re.compile(pattern)
    return lambda text: 1.0 if compiled.search(text) else 0.0
