"""Sequences of token ids as rectangular tensors: the only padding in the house, and how to keep it small."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PaddedSequences:
    """A batch of B prompts with their completions, each row one sequence padded on the right to L tokens.

    Right padding needs no attention mask: under causal attention a real token never looks at what follows it.
    """

    input_ids: Tensor
    """[B, L] int64: prompt, completion, padding."""
    prompt_lengths: Tensor
    """[B] int64, each at least 1."""
    completion_lengths: Tensor
    """[B] int64, each at least 1."""

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
    input_ids = torch.full((len(rows), max(map(len, rows))), pad_id, dtype=torch.int64)
    for row, ids in zip(input_ids, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return PaddedSequences(
        input_ids,
        torch.tensor([len(prompt) for prompt in prompts]),
        torch.tensor([len(completion) for completion in completions]),
    )


def split_by_tokens(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Returns the indices of `lengths` in groups whose padded size, count times longest, is at most `max_tokens`.

    Groups hold sequences of like length, so little is padding, and the longest come first, so that memory that does not
    suffice is found out at once. A sequence longer than `max_tokens` forms a group of its own.

    Raises: ValueError if max_tokens is below 1.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens is {max_tokens}; it must be at least 1")
    longest_first = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    groups: list[list[int]] = []
    start = 0
    while start < len(longest_first):
        longest = max(1, lengths[longest_first[start]])
        stop = start + max(1, max_tokens // longest)
        groups.append(longest_first[start:stop])
        start = stop
    return groups
