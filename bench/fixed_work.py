"""The one piece of work that both sides of the comparison do: the prompts, the lengths, the seeds and the models.

A step samples exactly 48 new tokens for each of 32 prompts (about 40 tokens each, under the model's chat template),
scores them, and takes one PPO epoch of one minibatch. Policy, reference, reward and value are the same small model.
"""

import dataclasses
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from rlhf.data.prompts import load_prompts
from rlhf.models.loading import load_tokenizer
from rlhf.models.scalar_model import ScalarModel, padding_token
from rlhf_cli.models.fetch import fetch_small_model

NEW_TOKENS = 48
MAX_PROMPT_TOKENS = 64
TEMPERATURE = 1.0
SEED = 20260

# Short and long, so that the prompts differ in length as real ones do.
QUESTIONS = (
    "Why is the sky blue?",
    "Name three rivers in Europe.",
    "Write a haiku about the first snow of winter.",
    "How do I boil an egg so that the yolk stays soft?",
    "Explain what a neural network is to a ten year old.",
    "My bicycle chain keeps slipping. What should I check first?",
    "Tell me a story.",
    "What is the difference between a fruit and a vegetable?",
    "Write one sentence about a lighthouse keeper who is afraid of the dark.",
    "Who wrote Hamlet?",
    "Give me two reasons to learn a second language as an adult.",
    "How far away is the moon?",
    "Describe the smell of rain on a hot street.",
    "I have rice, eggs and one onion. What can I cook tonight?",
    "What does a compiler do?",
    "Write a short apology to a neighbour whose parcel I opened by mistake.",
    "Is a whale a fish?",
    "Suggest a name for a small bakery near a railway station.",
    "How can I fall asleep faster when I am worried about work?",
    "Convert ten miles to kilometres.",
    "What happens to a candle when there is no oxygen?",
    "Tell me something surprising about octopuses.",
    "Write a toast for my grandmother, who turns ninety on Sunday.",
    "Why do leaves fall?",
    "List the steps to change a flat tyre on a quiet road at night.",
    "What is a good question to ask at a job interview?",
    "Summarise the story of Icarus in one line.",
    "Can plants feel pain?",
    "My plant has yellow leaves although I water it every single day. Why?",
    "What is the capital of Australia?",
    "Describe a market in the morning before the customers come.",
    "Explain why bread rises.",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedWork:
    """What a step has to do, with the models as folders; in JSON for a process that cannot import this package."""

    prompts: list[list[int]]
    """Token ids after the chat template."""
    prompts_path: str
    """The same prompts as text, in the trainer's form."""
    new_tokens: int
    """Of every completion: none stops earlier."""
    temperature: float
    """Divides the logits."""
    seed: int
    """Of sampling."""
    pad_id: int
    """An id to pad with, and to stop at: it occurs in no prompt and is as good as never sampled."""
    policy_path: str
    """Causal language model, bfloat16: policy and reference."""
    scalar_path: str
    """Sequence classifier of one label on the same base, with a random head: reward model and value model."""

    @property
    def num_prompt_tokens(self) -> int:
        """Of all prompts together."""
        return sum(map(len, self.prompts))

    @property
    def num_new_tokens(self) -> int:
        """Of all completions together."""
        return self.new_tokens * len(self.prompts)

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self)))

    def describe(self) -> str:
        """The work in a line."""
        lengths = [len(prompt) for prompt in self.prompts]
        return (
            f"{len(lengths)} prompts of {min(lengths)} to {max(lengths)} tokens ({self.num_prompt_tokens} in all), "
            f"{self.new_tokens} new tokens each, 1 epoch, 1 minibatch"
        )

    @classmethod
    def prepare(cls, folder: Path) -> Self:
        """Returns the work; fetches the model if it is not there yet, writes prompts and classifier to the folder."""
        folder.mkdir(parents=True, exist_ok=True)
        policy_path = fetch_small_model(report=lambda message: print(message, file=sys.stderr))
        tokenizer = load_tokenizer(policy_path)
        scalar_path = folder / "scalar-model"
        ScalarModel.from_policy(policy_path, dtype="bfloat16", seed=SEED).save(scalar_path, tokenizer)
        prompts_path = folder / "prompts.jsonl"
        prompts_path.write_text("".join(json.dumps({"prompt": question}) + "\n" for question in QUESTIONS))
        prompt_set = load_prompts(prompts_path, tokenizer, max_prompt_tokens=MAX_PROMPT_TOKENS)
        return cls(
            prompts=[item.prompt_ids for item in prompt_set.items],
            prompts_path=str(prompts_path),
            new_tokens=NEW_TOKENS,
            temperature=TEMPERATURE,
            seed=SEED,
            pad_id=tokenizer.convert_tokens_to_ids(padding_token(tokenizer)),
            policy_path=str(policy_path),
            scalar_path=str(scalar_path),
        )
