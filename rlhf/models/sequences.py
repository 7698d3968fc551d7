"""Batches of token sequences as padded tensors, and their split into micro-batches by tokens."""

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PaddedSequences:
    """A batch of B prompts with their completions, each row one sequence padded on the right to L tokens.

    Models see only the real tokens (rlhf/models/packing.py).
    """

    input_ids: Tensor
    """[B, L] int64: prompt, completion, padding."""
    prompt_lengths: Tensor
    """[B] int64, each at least 1; 0 only for a sequence of one token from pad_whole."""
    completion_lengths: Tensor
    """[B] int64, each at least 1."""

    @property
    def lengths(self) -> Tensor:
        """[B] int64: tokens of prompt and completion together."""
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
        prompts, completions: token ids; the same number of both, none empty.
        pad_id: fills the rows; any known id will do, because padding is never read.
    Raises: ValueError naming the empty entry, or the two counts if they differ or are 0.
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
    """Returns whole sequences, such as those that get one score each, as rows of a batch.

    The last token of each row counts as its completion; a row of one token has an empty prompt.

    Args:
        rows: token ids; at least one row, none empty.
        pad_id: as in pad_sequences.
    Raises: ValueError naming the empty row, or if there are no rows.
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
    """Returns the indices of `lengths` in groups of at most `max_tokens` tokens, one group per forward pass.

    Best-fit decreasing: the longest sequence goes first, each into the fullest group that still has room, so there are
    few groups. The first group holds the longest sequence, so a lack of memory shows at once. A sequence longer than
    `max_tokens` forms a group of its own. Equal arguments give equal groups.

    Args:
        lengths: tokens of each sequence.
        max_tokens: of one forward pass, at least 1.
    Raises: ValueError if max_tokens is below 1.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}; it must be at least 1")
    groups: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (free tokens of a group, its number), ascending
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
