"""The training steps that both sides of bench/train.py take: examples as token ids, and the models as folders.

Lengths are spread as in real data, with a fixed seed: prompts of 10 to 60 tokens, whole sequences of 40 to 400. The ids
are random: the speed of a step does not depend on what they say.
"""

import dataclasses
import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from rlhf.models.loading import load_tokenizer
from rlhf.models.scalar_model import ScalarModel, padding_token
from rlhf_cli.models.fetch import fetch_small_model

TASKS = ("sft", "reward", "dpo", "ppo")
SEED = 20260
LENGTHS = (40, 400)
PROMPT_LENGTHS = (10, 60)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainWork:
    """What an optimizer step is taken on, the same in every step; in JSON for other processes."""

    conversations: list[tuple[list[int], ...]]
    """(prompt, completion): for SFT, and as the rollouts of PPO. Longest first."""
    pairs: list[tuple[list[int], ...]]
    """(prompt, chosen, rejected): for reward model and DPO, half as many. Longest first."""
    policy_path: str
    """Causal language model, bfloat16."""
    scalar_path: str
    """Sequence classifier of one label on the same base, with a random head: reward model and critic."""
    pad_id: int
    """An id to pad with that no example has."""

    def num_tokens(self, task: str) -> int:
        """Real tokens of a step's forward passes of one model, those of a prompt counted with each completion."""
        if task in ("sft", "ppo"):
            return sum(map(_length, self.conversations))
        return sum(2 * len(prompt) + len(chosen) + len(rejected) for prompt, chosen, rejected in self.pairs)

    def describe(self) -> str:
        """The work in a line."""
        lengths = [_length(each) for each in self.conversations]
        return (
            f"steps of {len(lengths)} sequences of {min(lengths)} to {max(lengths)} tokens ({sum(lengths)} in all), or "
            f"of {len(self.pairs)} pairs ({self.num_tokens('dpo')} tokens)"
        )

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Returns what `save` wrote."""
        return cls(**json.loads(path.read_text()))

    @classmethod
    def prepare(cls, folder: Path, num_sequences: int, policy_path: Path | None = None) -> Self:
        """Returns the work, and writes the classifier to the folder.

        Args:
            num_sequences: of a step; half as many pairs.
            policy_path: the model; the small real one if None, which is fetched if it is not there yet.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if policy_path is None:
            policy_path = fetch_small_model(report=lambda message: print(message, file=sys.stderr))
        tokenizer = load_tokenizer(policy_path)
        scalar_path = folder / "scalar-model"
        ScalarModel.from_policy(policy_path, dtype="bfloat16", seed=SEED).save(scalar_path, tokenizer)
        generator = random.Random(SEED)
        vocab = range(len(tokenizer) // 2, len(tokenizer))  # special tokens come first
        conversations = [
            tuple(generator.choices(vocab, k=n) for n in size) for size in _sizes(generator, num_sequences, 1)
        ]
        pairs = [
            tuple(generator.choices(vocab, k=n) for n in size) for size in _sizes(generator, num_sequences // 2, 2)
        ]
        return cls(
            conversations=conversations,
            pairs=pairs,
            policy_path=str(policy_path),
            scalar_path=str(scalar_path),
            pad_id=tokenizer.convert_tokens_to_ids(padding_token(tokenizer)),
        )


def _sizes(generator: random.Random, count: int, completions: int) -> list[list[int]]:
    """Tokens of a prompt and of each of its completions, longest example first."""
    sizes = []
    for _ in range(count):
        prompt = generator.randint(*PROMPT_LENGTHS)
        sizes.append([prompt, *(max(1, generator.randint(*LENGTHS) - prompt) for _ in range(completions))])
    return sorted(sizes, key=lambda each: -max(each[1:]))


def _length(conversation: tuple[list[int], ...]) -> int:
    return sum(map(len, conversation))
