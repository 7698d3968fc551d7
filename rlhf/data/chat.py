"""Examples of supervised fine-tuning from rows of data: token ids, and which of them are trained."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf.data.chat_masks import ChatExample, Message, TrainOn, encode_conversation, encode_text, trimmed
from rlhf.data.prompts import read_prompt
from rlhf.data.records import Record, no_row_left, read_records
from rlhf.errors import ConfigError

EMPTY = "an empty completion"
TOO_LONG = "too long"


@dataclass(frozen=True, slots=True)
class ChatExamples:
    """The usable examples of a source, in its order."""

    examples: list[ChatExample]
    skipped: dict[str, int] = field(default_factory=dict)
    """Examples that were left out, by reason."""


def load_chat_examples(
    source: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int,
    split: str = "train",
    train_on: TrainOn = "all",
) -> ChatExamples:
    """Returns the examples of a JSONL or Parquet file, or of a data set's split.

    Each row has "messages"; or "prompt" (text or messages) and "completion" (text or messages); or "prompt_ids" and
    "completion_ids" (token ids). Text without a chat template is trained plain: the completion, then end-of-sequence.

    Args:
        source: path or name, as read_records takes it.
        max_tokens: longer examples are left out and counted, nothing is cut.
        train_on: every assistant turn, or the last one alone.
    Raises: ConfigError naming the place of what is malformed, or saying that nothing usable is left.
    """
    examples: list[ChatExample] = []
    skipped: Counter[str] = Counter()
    for place, record in read_records(source, split):
        try:
            example = read_chat_example(record, tokenizer, train_on)
        except ValueError as error:
            raise ConfigError(f"{place}: {error}") from None
        if example is None:
            skipped[EMPTY] += 1
        elif len(example.token_ids) > max_tokens:
            skipped[TOO_LONG] += 1
        else:
            examples.append(example)
    if not examples:
        raise no_row_left(source, "example", skipped, max_tokens, more="examples")
    return ChatExamples(examples, dict(skipped))


def read_chat_example(
    record: Record, tokenizer: PreTrainedTokenizerBase, train_on: TrainOn = "all"
) -> ChatExample | None:
    """Returns the example of a row, None if the assistant says nothing in it. Raises: ValueError saying what is odd."""
    present = {key: value for key, value in record.items() if value is not None}
    if "completion_ids" in present:
        return _from_ids(present, len(tokenizer))
    if "completion" in present:
        if isinstance(present["completion"], str) and not present["completion"]:
            return None
        if tokenizer.chat_template is None:
            return _plain(present, tokenizer)
        return encode_conversation(_conversation(present), tokenizer, "last")
    if "messages" not in present:
        names = ", ".join(f'"{name}"' for name in present) or "(none)"
        raise ValueError(
            f'there are the columns {names}; an example needs "messages", or "prompt" and "completion", or '
            '"prompt_ids" and "completion_ids"'
        )
    return encode_conversation(_checked_messages("messages", present["messages"]), tokenizer, train_on)


def _plain(record: Record, tokenizer: PreTrainedTokenizerBase) -> ChatExample | None:
    completion = record["completion"]
    if not isinstance(completion, str):
        raise ValueError(f'"completion" is {completion!r:.60}; without a chat template it must be text')
    prompt_ids = read_prompt(
        {key: record[key] for key in ("prompt", "messages") if key in record}, tokenizer
    ).prompt_ids
    ids = encode_text(completion, tokenizer)
    if tokenizer.eos_token_id is not None:
        ids.append(tokenizer.eos_token_id)
    return trimmed([*prompt_ids, *ids], [False] * len(prompt_ids) + [True] * len(ids))


def _from_ids(record: Record, vocab_size: int) -> ChatExample | None:
    lists = []
    for name in ("prompt_ids", "completion_ids"):
        value = record.get(name)
        if not isinstance(value, list) or not all(type(each) is int for each in value):
            raise ValueError(f'"{name}" is {value!r:.60}; it must be a list of token ids')
        unknown = next((each for each in value if not 0 <= each < vocab_size), None)
        if unknown is not None:
            raise ValueError(f'"{name}" has {unknown}; the tokenizer\'s ids go from 0 to {vocab_size - 1}')
        lists.append(value)
    prompt_ids, completion_ids = lists
    if not prompt_ids:
        raise ValueError('"prompt_ids" is empty; a completion needs a prompt that it answers')
    return trimmed(prompt_ids + completion_ids, [False] * len(prompt_ids) + [True] * len(completion_ids))


def _conversation(record: Record) -> list[Message]:
    """Returns the messages of a prompt with the completion as the assistant's answer."""
    if ("prompt" in record) == ("messages" in record):
        raise ValueError('"completion" needs either "prompt" or "messages" that it answers')
    prompt, completion = record.get("prompt", record.get("messages")), record["completion"]
    opening = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else _checked_messages("prompt", prompt)
    if isinstance(prompt, str) and not prompt.strip():
        raise ValueError(f'"prompt" is {prompt!r}; it must be a text that is not empty')
    if isinstance(completion, str):
        return [*opening, {"role": "assistant", "content": completion}]
    return [*opening, *_checked_messages("completion", completion)]


def _checked_messages(name: str, value: Any) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise ValueError(f'"{name}" is {value!r:.60}; it must be text or a list with at least one message')
    for index, message in enumerate(value):
        if not isinstance(message, Mapping) or not all(
            isinstance(message.get(key), str) for key in ("role", "content")
        ):
            raise ValueError(f'"{name}"[{index}] must be an object with the texts "role" and "content"')
    return value
