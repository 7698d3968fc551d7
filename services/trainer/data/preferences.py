"""Preferences as training data: JSONL in, pairs of token ids out, every faulty line refused by its place."""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlhf_services.common.errors import ConfigError
from rlhf_services.trainer.data.prompts import read_prompt

TEXT_KEYS = ("chosen", "rejected")
ID_KEYS = ("prompt_ids", "chosen_ids", "rejected_ids")


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two completions of one prompt, of which the first was preferred. Token ids, none of the lists empty."""

    prompt_ids: tuple[int, ...]
    chosen_ids: tuple[int, ...]
    rejected_ids: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt and the longer completion."""
        return len(self.prompt_ids) + max(len(self.chosen_ids), len(self.rejected_ids))


@dataclass(frozen=True, slots=True)
class Preferences:
    """The pairs of a file."""

    pairs: list[PreferencePair]
    num_too_long: int
    """Pairs that were left out because a side is too long."""


def load_preferences(path: Path, tokenizer: PreTrainedTokenizerBase, *, max_tokens: int) -> Preferences:
    """Returns the pairs of a JSONL file.

    Text is tokenized as the reward service does it: the prompt as a user's message up to where the answer begins, each
    completion with the end-of-sequence id after it. Token ids are taken as they are.

    Raises: ConfigError naming file and line of what is no pair or has equal sides, or saying that no pair is left.
    """
    pairs: list[PreferencePair] = []
    num_too_long = 0
    for place, record in _records(path):
        pair = _pair(record, tokenizer, place)
        if pair.num_tokens > max_tokens:
            num_too_long += 1
        else:
            pairs.append(pair)
    if not pairs:
        raise ConfigError(
            f"data.path is '{path}': no pair left ({num_too_long} longer than data.max_tokens = {max_tokens} tokens); "
            "raise data.max_tokens, or give more preferences"
        )
    return Preferences(pairs, num_too_long)


def split_by_prompt(
    pairs: Sequence[PreferencePair], heldout_fraction: float, seed: int
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Returns (training pairs, held-out pairs); no prompt is in both, and the split depends on prompts and seed alone.

    Args:
        heldout_fraction: share of the distinct prompts to hold out; at least one of them is, unless it is 0.
    Raises: ConfigError if no prompt would be left to train on.
    """
    prompts = sorted({pair.prompt_ids for pair in pairs})
    random.Random(seed).shuffle(prompts)
    num_heldout = max(1, round(len(prompts) * heldout_fraction)) if heldout_fraction > 0 else 0
    if num_heldout >= len(prompts):
        raise ConfigError(
            f"data.heldout_fraction is {heldout_fraction}: of {len(prompts)} distinct prompts none would be left to "
            "train on; lower it, or give preferences for more prompts"
        )
    heldout = set(prompts[:num_heldout])
    return (
        [pair for pair in pairs if pair.prompt_ids not in heldout],
        [pair for pair in pairs if pair.prompt_ids in heldout],
    )


def _records(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yields each line's place ("file:line") and object; blank lines are passed over."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"data.path is '{path}': cannot be read: {error.strerror}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        place = f"{path}:{number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ConfigError(f"{place}: not JSON: {error}") from None
        if not isinstance(record, dict):
            raise ConfigError(f"{place}: a {type(record).__name__}, not an object with prompt, chosen and rejected")
        yield place, record


def _pair(record: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, place: str) -> PreferencePair:
    if any(key in record for key in ID_KEYS):
        prompt_ids, chosen_ids, rejected_ids = (_ids(record, key, len(tokenizer), place) for key in ID_KEYS)
    else:
        chosen, rejected = (_text(record, key, place) for key in TEXT_KEYS)
        try:
            prompt_ids = tuple(read_prompt(record, tokenizer).prompt_ids)
        except ValueError as error:
            raise ConfigError(f"{place}: {error}") from None
        chosen_ids, rejected_ids = (_encode_completion(text, tokenizer) for text in (chosen, rejected))
    if chosen_ids == rejected_ids:
        raise ConfigError(f"{place}: chosen and rejected are equal; leave out pairs without a preference")
    return PreferencePair(prompt_ids, chosen_ids, rejected_ids)


def _ids(record: Mapping[str, Any], key: str, vocab_size: int, place: str) -> tuple[int, ...]:
    value = record.get(key)
    if not isinstance(value, list) or not value or not all(type(each) is int for each in value):
        raise ConfigError(f"{place}: {key} is {value!r:.60}; it must be a list of token ids, not empty")
    unknown = [each for each in value if not 0 <= each < vocab_size]
    if unknown:
        raise ConfigError(f"{place}: {key} has {unknown[0]}; the tokenizer's ids go from 0 to {vocab_size - 1}")
    return tuple(value)


def _text(record: Mapping[str, Any], key: str, place: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{place}: {key} is {value!r:.60}; it must be text, not empty")
    return value


def _encode_completion(text: str, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Returns a finished completion's ids: a text is an answer that has ended."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return (*ids, tokenizer.eos_token_id) if tokenizer.eos_token_id is not None else tuple(ids)
