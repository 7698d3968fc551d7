"""Sequences of token ids as rectangular tensors: the only padding in the house, and how to keep it small."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PaddedSequences:
    """A batch of B prompts with their completions, each row one sequence padded on the right to L tokens.

    It is the form in which batches are handed around; the models themselves see the real tokens alone (packing.py).
    """

    input_ids: Tensor
    """[B, L] int64: prompt, completion, padding."""
    prompt_lengths: Tensor
    """[B] int64, each at least 1; 0 only for a sequence of one token that pad_whole made."""
    completion_lengths: Tensor
    """[B] int64, each at least 1."""

    @property
    def lengths(self) -> Tensor:
        """[B] int64: prompt and completion together."""
        return self.prompt_lengths + self.completion_lengths

    @property
    def completion_mask(self) -> Tensor:
        """[B, T] bool, T the longest completion: True at completion tokens, which come first, False at padding."""
        positions = torch.arange(int(self.completion_lengths.max()), device=self.completion_lengths.device)
        return positions < self.completion_lengths[:, None]

    def to(self, device: torch.device | str) -> "PaddedSequences":
        """Returns the batch on another device."""
        return PaddedSequences(
            self.input_ids.to(device), self.prompt_lengths.to(device), self.completion_lengths.to(device)
        )


def pad_sequences(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], pad_id: int = 0
) -> PaddedSequences:
    """Returns prompt i followed by completion i as row i of a batch.

    Args:
        prompts, completions: token ids; as many of the one as of the other, none empty.
        pad_id: fills the rows up; any known id will do, for nothing reads what stands there.
    Raises: ValueError naming the entry that is empty, or the two counts if they differ or are 0.
    """
    if len(prompts) != len(completions) or not prompts:
        raise ValueError(
            f"got {len(prompts)} prompts and {len(completions)} completions; there must be as many, at least one"
        )
    for name, entries in (("prompts", prompts), ("completions", completions)):
        for index, ids in enumerate(entries):
            if len(ids) == 0:
                raise ValueError(f"{name}[{index}] is empty; drop it before the batch is formed")
    rows = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
    return PaddedSequences(
        _rectangle(rows, pad_id),
        torch.tensor([len(prompt) for prompt in prompts]),
        torch.tensor([len(completion) for completion in completions]),
    )


def pad_whole(rows: Sequence[Sequence[int]], pad_id: int = 0) -> PaddedSequences:
    """Returns sequences of which only the whole matters, such as those that get one score, as rows of a batch.

    Each row's last token counts as its completion; of a row of one token the prompt is empty.

    Args:
        rows: token ids; at least one row, none empty.
        pad_id: as in pad_sequences.
    Raises: ValueError naming the row that is empty, or saying that there is none.
    """
    if not rows:
        raise ValueError("got no rows; there must be at least one")
    for index, ids in enumerate(rows):
        if len(ids) == 0:
            raise ValueError(f"rows[{index}] is empty; drop it before the batch is formed")
    lengths = torch.tensor([len(ids) for ids in rows])
    return PaddedSequences(_rectangle(rows, pad_id), lengths - 1, torch.ones_like(lengths))


def _rectangle(rows: Sequence[Sequence[int]], pad_id: int) -> Tensor:
    """Returns the rows as [B, L] int64, padded on the right."""
    input_ids = torch.full((len(rows), max(map(len, rows))), pad_id, dtype=torch.int64)
    for row, ids in zip(input_ids, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return input_ids


def scatter_to_mask(values: Tensor, mask: Tensor) -> Tensor:
    """Returns values [N] at the N True positions of mask [B, T], row by row, and 0.0 elsewhere: [B, T]."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)


def split_by_tokens(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Returns the indices of `lengths` in groups of at most `max_tokens` tokens: the most of one forward pass.

    The fullest groups that still have room are filled first, longest sequences first (best-fit decreasing), so there
    are few groups; the first holds the longest sequence, so that memory that does not suffice is found out at once. A
    sequence longer than `max_tokens` forms a group of its own. Equal arguments give equal groups.

    Raises: ValueError if max_tokens is below 1.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}; it must be at least 1")
    groups: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (tokens that a group still takes, its number), ascending
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        place = bisect_left(rooms, (lengths[index], -1))
        if place < len(rooms):
            room, number = rooms.pop(place)
            groups[number].append(index)
        else:
            room, number = max_tokens, len(groups)
            groups.append([index])
        insort(rooms, (room - lengths[index], number))
    return groups
