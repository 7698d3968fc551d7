"""Parsing one row of preferences: its columns are checked, its texts tokenized as in the reward service."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf.data.prompts import encode_completion, read_prompt
from rlhf.data.records import Record, require_ids, require_prompt_ids

Ids = tuple[int, ...]

PAIR_COLUMNS = ("chosen", "rejected")
LABEL_COLUMNS = ("label", "chosen_probability")
FORMS = (
    'a pair needs "prompt" or "messages" with "chosen" and "rejected", or "prompt_ids", "chosen_ids" and '
    '"rejected_ids"; a ranking needs "completions" (best first, or with "ranks"), or "completion_ids"'
)


@dataclass(frozen=True, slots=True)
class RawPreferences:
    """The content of a row, before it is checked whether it is usable."""

    prompt_ids: Ids
    completions: tuple[Ids, ...]
    """At least two; an empty one is ()."""
    ranks: tuple[float, ...]
    """One for each completion; lower is better."""
    label: float = 1.0
    """Probability that the better-ranked completion of a pair is the better one; 1 for rankings."""
    margin: float = 0.0
    """By how much it is better, in units of score."""


def read_raw(record: Record, tokenizer: PreTrainedTokenizerBase) -> RawPreferences:
    """Returns the content of a row. A column that is null counts as absent, because tables have no other way to say it.

    Raises: ValueError naming the column, its value, and what it must be.
    """
    present = {key: value for key, value in record.items() if value is not None}
    if "completions" in present or "completion_ids" in present:
        return _ranking(present, tokenizer)
    if not any(f"{name}{suffix}" in present for name in PAIR_COLUMNS for suffix in ("", "_ids")):
        raise ValueError(f"no preference in the columns {_names(present)}; {FORMS}")
    return _pair(present, tokenizer)


def _pair(record: Record, tokenizer: PreTrainedTokenizerBase) -> RawPreferences:
    columns = [f"{name}_ids" if _has_ids(record) else name for name in PAIR_COLUMNS]
    missing = next((column for column in columns if column not in record), None)
    if missing is not None:
        raise ValueError(f'"{missing}" is missing, there are the columns {_names(record)}; {FORMS}')
    prompt_ids, completions = _encode(record, {column: record[column] for column in columns}, tokenizer)
    label, margin = _label(record), _margin(record)
    if margin > 0 and label < 0.5:
        raise ValueError(
            f'"margin" is {margin} and the label {label}: the one says that "chosen" is better, the other that '
            '"rejected" is; exchange the two completions, or leave the margin out'
        )
    return RawPreferences(prompt_ids, completions, (0.0, 1.0), label, margin)


def _ranking(record: Record, tokenizer: PreTrainedTokenizerBase) -> RawPreferences:
    for column in ("margin", *LABEL_COLUMNS):
        if column in record:
            raise ValueError(f'"{column}" belongs to a pair, not to a ranking; leave it out, or give pairs')
    column = "completion_ids" if _has_ids(record) else "completions"
    values = record.get(column)
    if not isinstance(values, list) or len(values) < 2:
        raise ValueError(f'"{column}" is {values!r:.60}; it must be a list of at least two completions')
    named = {f"{column}[{index}]": value for index, value in enumerate(values)}
    prompt_ids, completions = _encode(record, named, tokenizer)
    return RawPreferences(prompt_ids, completions, _ranks(record, len(values)))


def _ranks(record: Record, count: int) -> tuple[float, ...]:
    ranks = record.get("ranks")
    if ranks is None:
        return tuple(float(place) for place in range(count))
    if not isinstance(ranks, list) or len(ranks) != count or not all(_is_number(rank) for rank in ranks):
        raise ValueError(f'"ranks" is {ranks!r:.60}; it must be a list of {count} numbers, one for each completion')
    return tuple(float(rank) for rank in ranks)


def _label(record: Record) -> float:
    given = [column for column in LABEL_COLUMNS if column in record]
    if len(given) > 1:
        raise ValueError('there are both "label" and "chosen_probability", which say the same; leave one out')
    if not given:
        return 1.0
    value = record[given[0]]
    if not _is_number(value) or not 0 <= value <= 1:
        raise ValueError(f'"{given[0]}" is {value!r:.60}; it must be a probability, a number from 0 to 1')
    return float(value)


def _margin(record: Record) -> float:
    value = record.get("margin", 0.0)
    if not _is_number(value) or value < 0:
        raise ValueError(f'"margin" is {value!r:.60}; it must be a number of at least 0')
    return float(value)


def _encode(
    record: Record, named: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> tuple[Ids, tuple[Ids, ...]]:
    """Returns the ids of the prompt and of each completion.

    Args:
        record: the row.
        named: the value of each completion, by its column.
        tokenizer: of the model.
    """
    if _has_ids(record):
        vocab_size = len(tokenizer)
        prompt_ids = require_prompt_ids(record, vocab_size)
        completions = (require_ids(name, value, vocab_size) for name, value in named.items())
        return tuple(prompt_ids), tuple(tuple(ids) for ids in completions)
    parts = [_split_conversation(name, value) for name, value in named.items()]
    openings = [opening for opening, _ in parts if opening]
    if any(opening != openings[0] for opening in openings[1:]):
        raise ValueError(f"{' and '.join(named)} answer different conversations; they must differ in the last message")
    prompt = read_prompt(_prompt_of(record, openings[0] if openings else []), tokenizer)
    return tuple(prompt.prompt_ids), tuple(tuple(encode_completion(text, tokenizer)) for _, text in parts)


def _prompt_of(record: Record, opening: Sequence[Any]) -> Record:
    """Returns the argument of read_prompt: the conversation that the completions continue, else the row's prompt."""
    if opening:
        return {"messages": list(opening)}
    if isinstance(record.get("prompt"), list):
        return {"messages": record["prompt"]}
    prompt = {key: record[key] for key in ("prompt", "messages") if key in record}
    if not prompt:
        raise ValueError(f'"prompt" is missing, there are the columns {_names(record)}; {FORMS}')
    return prompt


def _split_conversation(name: str, value: Any) -> tuple[list[Any], str]:
    """Returns the messages before a completion, and its text. A completion may be text or messages."""
    if isinstance(value, str):
        return [], value
    last = value[-1] if isinstance(value, list) and value else None
    if isinstance(last, dict) and last.get("role") == "assistant" and isinstance(last.get("content"), str):
        return value[:-1], last["content"]
    raise ValueError(f'"{name}" is {value!r:.60}; it must be text, or messages of which the last is the assistant\'s')


def _has_ids(record: Record) -> bool:
    return any(column in record for column in ("prompt_ids", "chosen_ids", "rejected_ids", "completion_ids"))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _names(record: Record) -> str:
    return ", ".join(f'"{name}"' for name in record) or "(none)"
