"""Preferences as training data: pairs and rankings as prompts, completions and choices in token ids.

A row is one of these, with "prompt" or "messages" for texts and "prompt_ids" for token ids:

    pair     "chosen", "rejected" (texts or messages), or "chosen_ids", "rejected_ids" (token ids)
             "margin": by how much the scores should differ, at least 0
             "label" or "chosen_probability": probability that "chosen" is better, from 0 to 1
    ranking  "completions" (texts or messages) or "completion_ids" (lists of token ids), best first;
             "ranks": a number for each, lower is better and equal is a tie; the order is then free

A malformed row (a missing column, a value of the wrong type) is an error that names its place. Pairs that are empty,
equal, tied or too long are left out and counted; a ranking keeps its other pairs.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Protocol, TypeVar

from transformers import PreTrainedTokenizerBase

from rlhf.data.preference_records import Ids, RawPreferences, read_raw
from rlhf.data.records import no_row_left, read_records
from rlhf.errors import ConfigError

EMPTY = "an empty completion"
EQUAL = "equal completions"
TOO_LONG = "too long"
TIED = "a tie"


@dataclass(frozen=True, slots=True)
class Choice:
    """A preference between two completions of a group, by their indices."""

    chosen: int
    rejected: int
    target: float = 1.0
    """Probability that the chosen one is better, at least 0.5 (equally good)."""
    margin: float = 0.0
    """By how much it is better, in units of score; at least 0."""


@dataclass(frozen=True, slots=True)
class PreferenceGroup:
    """A prompt, at least two completions, and the choices between them: one element of a batch.

    Each completion needs one forward pass, however many choices refer to it. None of the lists is empty.
    """

    prompt_ids: Ids
    completions: tuple[Ids, ...]
    choices: tuple[Choice, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens of the forward passes over all completions, each with the prompt."""
        return sum(len(self.prompt_ids) + len(completion) for completion in self.completions)

    def pairs(self) -> list["PreferencePair"]:
        """Returns the choices as pairs."""
        return [
            PreferencePair(
                self.prompt_ids,
                self.completions[choice.chosen],
                self.completions[choice.rejected],
                choice.target,
                choice.margin,
            )
            for choice in self.choices
        ]


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two completions of one prompt, the first preferred, as token ids. None of the lists is empty."""

    prompt_ids: Ids
    chosen_ids: Ids
    rejected_ids: Ids
    target: float = 1.0
    """As in Choice."""
    margin: float = 0.0
    """As in Choice."""


@dataclass(frozen=True, slots=True)
class Preferences:
    """The usable preferences of a source."""

    groups: list[PreferenceGroup]
    """One for each pair or ranking, in the source's order."""
    skipped: dict[str, int]
    """Number of pairs that were left out, by reason."""

    @property
    def pairs(self) -> list[PreferencePair]:
        """All choices as pairs."""
        return [pair for group in self.groups for pair in group.pairs()]


class _HasPrompt(Protocol):
    @property
    def prompt_ids(self) -> Ids: ...


Item = TypeVar("Item", bound=_HasPrompt)


def load_preferences(
    source: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int,
    split: str = "train",
    field: str = "data.path",
) -> Preferences:
    """Returns the preferences of a JSONL or Parquet file, or of a data set's split.

    Text is tokenized as in the reward service: the prompt as a user's message with the generation prompt, each
    completion with the end-of-sequence id after it. Token ids are used as they are.

    Args:
        source, split, field: as in read_records.
        tokenizer: of the model to be trained.
        max_tokens: limit of prompt and completion; longer pairs are left out, nothing is cut.
    Raises: ConfigError naming the place of a malformed row, or if no pair is usable.
    """
    groups: list[PreferenceGroup] = []
    skipped: Counter[str] = Counter()
    for place, record in read_records(source, split, field=field):
        try:
            group = _usable(read_raw(record, tokenizer), max_tokens, skipped)
        except ValueError as error:
            raise ConfigError(f"{place}: {error}") from None
        if group is not None:
            groups.append(group)
    if not groups:
        raise no_row_left(source, "pair", skipped, max_tokens, more="preferences", field=field)
    return Preferences(groups, dict(skipped))


def merge_by_prompt(groups: Sequence[PreferenceGroup]) -> list[PreferenceGroup]:
    """Returns one group for each prompt, with its distinct completions and all choices, in order of appearance.

    A completion that is in several pairs then costs one forward pass, and every prompt has the same weight.
    """
    merged: dict[Ids, tuple[dict[Ids, int], list[Choice]]] = {}
    for group in groups:
        places, choices = merged.setdefault(group.prompt_ids, ({}, []))
        for completion in group.completions:
            places.setdefault(completion, len(places))
        choices += [
            Choice(
                places[group.completions[choice.chosen]],
                places[group.completions[choice.rejected]],
                choice.target,
                choice.margin,
            )
            for choice in group.choices
        ]
    return [PreferenceGroup(ids, tuple(places), tuple(choices)) for ids, (places, choices) in merged.items()]


def split_by_prompt(items: Sequence[Item], heldout_fraction: float, seed: int) -> tuple[list[Item], list[Item]]:
    """Returns (training items, held-out items). No prompt is in both; the split depends only on prompts and seed.

    Args:
        items: what has a prompt.
        heldout_fraction: share of the distinct prompts to hold out, at least one of them unless it is 0.
        seed: of the shuffle.
    Raises: ConfigError if no prompt would be left to train on.
    """
    prompts = sorted({item.prompt_ids for item in items})
    random.Random(seed).shuffle(prompts)
    num_heldout = max(1, round(len(prompts) * heldout_fraction)) if heldout_fraction > 0 else 0
    if num_heldout >= len(prompts):
        raise ConfigError(
            f"data.heldout_fraction is {heldout_fraction}: of {len(prompts)} distinct prompts none would be left to "
            "train on; lower it, or give preferences for more prompts"
        )
    heldout = set(prompts[:num_heldout])
    return (
        [item for item in items if item.prompt_ids not in heldout],
        [item for item in items if item.prompt_ids in heldout],
    )


def _usable(raw: RawPreferences, max_tokens: int, skipped: Counter[str]) -> PreferenceGroup | None:
    """Returns the group of usable pairs, None if there are none; counts the pairs left out."""
    choices: list[Choice] = []
    for first, second in combinations(range(len(raw.completions)), 2):
        reason = _reason_to_skip(raw, first, second, max_tokens)
        if reason is None:
            choices.append(_choice(raw, first, second))
        else:
            skipped[reason] += 1
    # A completion without a choice would cost a forward pass for nothing.
    used = sorted({index for choice in choices for index in (choice.chosen, choice.rejected)})
    place = {index: position for position, index in enumerate(used)}
    if not choices:
        return None
    return PreferenceGroup(
        raw.prompt_ids,
        tuple(raw.completions[index] for index in used),
        tuple(replace(each, chosen=place[each.chosen], rejected=place[each.rejected]) for each in choices),
    )


def _reason_to_skip(raw: RawPreferences, first: int, second: int, max_tokens: int) -> str | None:
    sides = raw.completions[first], raw.completions[second]
    if not all(sides):
        return EMPTY
    if len(raw.prompt_ids) + max(map(len, sides)) > max_tokens:
        return TOO_LONG
    if sides[0] == sides[1]:
        return EQUAL
    return TIED if raw.ranks[first] == raw.ranks[second] else None


def _choice(raw: RawPreferences, first: int, second: int) -> Choice:
    """Returns the choice between two completions of different rank; the one that is better with p >= 0.5 is chosen."""
    better, worse = (first, second) if raw.ranks[first] < raw.ranks[second] else (second, first)
    if raw.label < 0.5:
        return Choice(worse, better, 1.0 - raw.label, raw.margin)
    return Choice(better, worse, raw.label, raw.margin)
