"""Prompts of a JSONL file, and a sampler of them in a shuffled order that a checkpoint can resume."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blake3 import blake3
from transformers import PreTrainedTokenizerBase

from rlhf.data.records import read_json_lines
from rlhf.errors import ConfigError
from rlhf.rollout import Prompt

SEED_BITS = 31
"""Seeds are below 2 to this power, so that every engine's random generator takes them."""
Message = Mapping[str, str]
"""A turn of a conversation: its "role" and its "content"."""


@dataclass(frozen=True, slots=True)
class PromptItem:
    """One prompt of a file."""

    text: str
    """The content of the last message."""
    prompt_ids: list[int]
    """After the chat template."""


@dataclass(frozen=True, slots=True)
class PromptSet:
    """The usable prompts of a file, in the file's order."""

    items: list[PromptItem]
    num_too_long: int
    """Number of prompts that were left out because they are too long."""


def load_prompts(
    path: Path, tokenizer: PreTrainedTokenizerBase, *, max_prompt_tokens: int, field: str = "prompts.path"
) -> PromptSet:
    """Returns the prompts of a JSONL file, each line {"prompt": text} or {"messages": [{"role":, "content":}, ...]}.

    A text becomes a user's message if the tokenizer has a chat template; otherwise it is used as it is.

    Args:
        path: the file.
        tokenizer: of the policy.
        max_prompt_tokens: longer prompts are left out and counted.
        field: the dotted path of the setting that named the file, for errors.
    Raises: ConfigError naming the file and the line that is malformed, or if no prompt is usable.
    """
    if not path.is_file():
        raise ConfigError(f"{field} is '{path}': no such file; give a JSONL file with a prompt on each line")
    items: list[PromptItem] = []
    num_too_long = 0
    for place, record in read_json_lines(path, field):
        try:
            item = read_prompt(record, tokenizer)
        except ValueError as error:
            raise ConfigError(f"{place}: {error}") from None
        if len(item.prompt_ids) > max_prompt_tokens:
            num_too_long += 1
        else:
            items.append(item)
    if not items:
        raise ConfigError(
            f"{field} is '{path}': it holds no usable prompt ({num_too_long} are longer than "
            f"prompts.max_prompt_tokens, {max_prompt_tokens})"
        )
    return PromptSet(items, num_too_long)


def read_prompt(value: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> PromptItem:
    """Returns the prompt of an object with either "prompt" or "messages". Raises: ValueError naming the faulty key."""
    if ("prompt" in value) == ("messages" in value):
        raise ValueError('expected an object with either "prompt" or "messages"')
    if "messages" in value:
        messages = checked_messages("messages", value["messages"])
        if messages[-1]["role"] == "assistant":
            raise ValueError('the last of "messages" is the assistant\'s; it must be what the assistant answers')
    elif isinstance(value["prompt"], str) and value["prompt"].strip():
        messages = [{"role": "user", "content": value["prompt"]}]
    else:
        raise ValueError(f'"prompt" is {value["prompt"]!r}; it must be a text that is not empty')
    if tokenizer.chat_template is not None:
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    elif "prompt" in value:
        ids = tokenizer(value["prompt"])["input_ids"]
    else:
        raise ValueError('"messages" needs a tokenizer with a chat template; this one has none: use "prompt"')
    return PromptItem(messages[-1]["content"], list(ids))


def checked_messages(name: str, value: Any) -> list[Message]:
    """Returns the messages in a row's column. Raises: ValueError if they are none, or not objects with two texts."""
    if not isinstance(value, list) or not value:
        raise ValueError(f'"{name}" is {value!r:.60}; it must be text or a list with at least one message')
    for index, message in enumerate(value):
        if not isinstance(message, Mapping) or not all(
            isinstance(message.get(key), str) for key in ("role", "content")
        ):
            raise ValueError(f'"{name}"[{index}] must be an object with the texts "role" and "content"')
    return value


def encode_completion(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns a finished completion's token ids: the text's, and end-of-sequence; none if the text is empty."""
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    return ids if not ids or tokenizer.eos_token_id is None else [*ids, tokenizer.eos_token_id]


class PromptSampler:
    """Draws prompts in an order that is shuffled for each epoch and depends only on seed and cursor."""

    def __init__(self, items: list[PromptItem], *, seed: int) -> None:
        self.cursor = 0
        """Prompts drawn so far, in all epochs."""
        self._items = items
        self._seed = seed
        self._digest = _digest(items)
        self._epoch = -1
        self._order: list[int] = []

    def draw(self, count: int) -> list[Prompt]:
        """Returns the next prompts, across the end of an epoch if needed.

        The group_id is the prompt's number in the order of drawing, so it is unique in the run. It determines the seed.
        """
        prompts = []
        for number in range(self.cursor, self.cursor + count):
            item = self._items[self._index(number)]
            seed = random.Random(f"completion {self._seed} {number}").getrandbits(SEED_BITS)
            prompts.append(Prompt(group_id=str(number), prompt_ids=item.prompt_ids, seed=seed))
        self.cursor += count
        return prompts

    def state(self) -> dict[str, int | str]:
        """Returns the state for load_state."""
        return {"cursor": self.cursor, "num_prompts": len(self._items), "prompts_digest": self._digest}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Resumes at a state from state(). Raises: ConfigError if the prompts have changed since."""
        if state["num_prompts"] != len(self._items):
            raise ConfigError(
                f"prompts.path has {len(self._items)} usable prompts now, the checkpoint was written with "
                f"{state['num_prompts']}; give the same file and prompts.max_prompt_tokens"
            )
        if state["prompts_digest"] != self._digest:
            raise ConfigError(
                "prompts.path holds other prompts than the checkpoint was written with (or the chat template changed); "
                "give the same file and model"
            )
        self.cursor = state["cursor"]

    def _index(self, number: int) -> int:
        epoch, position = divmod(number, len(self._items))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, list(range(len(self._items)))
            random.Random(f"order {self._seed} {epoch}").shuffle(self._order)
        return self._order[position]


def _digest(items: Sequence[PromptItem]) -> str:
    """Returns a digest of the token ids of all prompts in order."""
    return blake3(json.dumps([item.prompt_ids for item in items]).encode()).hexdigest()
