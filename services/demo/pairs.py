"""Preference pairs: completions of each prompt from the policy service, and the labeller's choices between them."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from rlhf_services.clients.policy import PolicyClient
from rlhf_services.common.rollout import Prompt, Rollout, Sampling
from rlhf_services.demo.labeller import LabelledPair, label_pairs
from rlhf_services.trainer.data.prompts import PromptItem

COMPLETIONS_PER_PROMPT = 4


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


async def sample_completions(
    target: str,
    items: Sequence[PromptItem],
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


def write_labelled_pairs(
    path: Path,
    items: Sequence[PromptItem],
    rollouts: Sequence[Sequence[Rollout]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
) -> LabelledData:
    """Has the labeller choose in every pair of a prompt's completions.

    Writes the choices and returns them.

    The file has the token ids as they were sampled, so that a completion that was cut at the limit does not look
    finished to the reward model, and the texts for people to read.
    """
    candidates = []
    ids_of_text: dict[tuple[str, str], list[int]] = {}
    prompt_ids = {item.text: item.prompt_ids for item in items}
    for item, group in zip(items, rollouts, strict=True):
        texts = [str(tokenizer.decode(each.completion_ids, skip_special_tokens=True)) for each in group]
        for text, rollout in zip(texts, group, strict=True):
            ids_of_text[item.text, text] = rollout.completion_ids
        candidates += [(item.text, *pair) for pair in combinations(texts, 2)]
    pairs, num_skipped = label_pairs(candidates, seed=seed)
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
