"""Sampling of completions, and the simulated labeller, who likes short, finished answers and errs at a known rate.

The rule, in full. The score of a completion is 1 if it has at most twenty words (what whitespace separates) and ends
like a sentence, with a full stop, an exclamation or question mark, perhaps in quotes; else it is 0. Of two completions
the labeller chooses the one with the higher score; then, with probability 0.1, independently for each pair, it names
the other one instead. Pairs whose scores are equal are left out, as a person would skip them. It never looks at the
prompt. The reward model is trained on these choices alone; the score is only used to report how far the policy came.
"""

import json
import random
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf.client.policy import PolicyClient
from rlhf.rollout import Prompt, Rollout, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from rlhf.data.prompts import PromptItem

NOISE_RATE = 0.1
SHORT_AND_FINISHED = r"""\A\s*(?:\S+\s+){0,19}\S*[.!?]["')]?\s*\Z"""
"""Matches what the labeller likes; the true score is the reward service's `pattern` rule with it."""


def pattern_score(pattern: str) -> Callable[[str], float]:
    """Returns the rule that gives 1 where a regular expression is found, else 0."""
    compiled = re.compile(pattern)
    return lambda text: 1.0 if compiled.search(text) else 0.0


true_score = pattern_score(SHORT_AND_FINISHED)
"""The rule of the labeller as it is by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledCompletion:
    """A completion."""

    completion: str
    """Without special tokens."""
    completion_ids: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledPrompt:
    """A prompt with the completions that were sampled for it."""

    prompt: str
    prompt_ids: list[int]
    completions: list[SampledCompletion]


async def sample_completions(
    target: str,
    items: "Sequence[PromptItem]",
    *,
    sampling: Sampling,
    seed: int,
    on_rollout: Callable[[], None],
) -> list[list[Rollout]]:
    """Returns each prompt's completions by the policy service at `target`; on_rollout is called as each arrives."""
    prompts = [
        Prompt(group_id=str(index), prompt_ids=item.prompt_ids, seed=seed + index * sampling.completions_per_prompt)
        for index, item in enumerate(items)
    ]
    rollouts: list[list[Rollout]] = [[] for _ in prompts]
    async with PolicyClient(target) as policy:
        max_prompts = (await policy.get_model()).max_prompts
        for first in range(0, len(prompts), max_prompts):
            async for rollout in policy.generate(prompts[first : first + max_prompts], sampling):
                rollouts[int(rollout.group_id)].append(rollout)
                on_rollout()
    return [sorted(group, key=lambda rollout: rollout.rollout_id) for group in rollouts]


def with_texts(
    items: "Sequence[PromptItem]", rollouts: Sequence[Sequence[Rollout]], tokenizer: "PreTrainedTokenizerBase"
) -> list[SampledPrompt]:
    """Returns each prompt with its completions, as ids and as text."""
    return [
        SampledPrompt(
            prompt=item.text,
            prompt_ids=item.prompt_ids,
            completions=[
                SampledCompletion(
                    completion=str(tokenizer.decode(each.completion_ids, skip_special_tokens=True)),
                    completion_ids=each.completion_ids,
                )
                for each in group
            ],
        )
        for item, group in zip(items, rollouts, strict=True)
    ]


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


@dataclass(frozen=True, slots=True)
class LabelledData:
    """The labeller's choices."""

    pairs: list[LabelledPair]
    num_skipped: int
    """Pairs the labeller saw no difference in."""

    @property
    def num_flipped(self) -> int:
        """Choices that the noise turned around."""
        return sum(pair.is_flipped for pair in self.pairs)


def label_pairs(
    candidates: Iterable[tuple[str, str, str]],
    *,
    seed: int,
    noise_rate: float = NOISE_RATE,
    score: Callable[[str], float] = true_score,
) -> tuple[list[LabelledPair], int]:
    """Returns the labeller's choices, and the number of pairs it skipped because their scores are equal.

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


def write_labelled_pairs(
    path: Path,
    sampled: Sequence[SampledPrompt],
    *,
    seed: int,
    noise_rate: float = NOISE_RATE,
    score: Callable[[str], float] = true_score,
) -> LabelledData:
    """Has the labeller choose in every pair of a prompt's completions; writes the choices and returns them.

    The file has the token ids as they were sampled, so that a completion that was cut at the limit does not look
    finished to the reward model, and the texts for people to read.
    """
    candidates = []
    ids_of_text: dict[tuple[str, str], list[int]] = {}
    prompt_ids = {each.prompt: each.prompt_ids for each in sampled}
    for each in sampled:
        for one in each.completions:
            ids_of_text[each.prompt, one.completion] = one.completion_ids
        texts = [one.completion for one in each.completions]
        candidates += [(each.prompt, *pair) for pair in combinations(texts, 2)]
    pairs, num_skipped = label_pairs(candidates, seed=seed, noise_rate=noise_rate, score=score)
    with path.open("w", encoding="utf-8") as file:
        for pair in pairs:
            record = {
                "prompt_ids": prompt_ids[pair.prompt],
                "chosen_ids": ids_of_text[pair.prompt, pair.chosen],
                "rejected_ids": ids_of_text[pair.prompt, pair.rejected],
                "prompt": pair.prompt,
                "chosen": pair.chosen,
                "rejected": pair.rejected,
            }
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return LabelledData(pairs, num_skipped)
