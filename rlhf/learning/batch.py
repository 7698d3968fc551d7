"""From samples to tensors. Per-token tensors are [B, T] over completion tokens alone, padded on the right."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.learning.sample import Sample
from rlhf.models.sequences import PaddedSequences, pad_sequences, split_by_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The samples of one step."""

    sequences: PaddedSequences
    completion_mask: Tensor
    """[B, T] bool."""
    sampler_logprobs: Tensor
    """[B, T] nats, as the policy service reported them; 0 at padding."""
    ref_logprobs: Tensor
    """[B, T] nats under the reference; 0 at padding."""
    rewards: Tensor
    """[B] as the reward service gave them."""
    group_ids: Tensor
    """[B] int64, equal for completions of one prompt: 0, 1, ... in the order in which prompts first appear."""
    stopped: Tensor
    """[B] bool: True where the end of the completion was sampled, False where its length ended it."""

    @property
    def size(self) -> int:
        """Samples."""
        return len(self.rewards)

    @property
    def num_completion_tokens(self) -> int:
        """Completion tokens, padding left out."""
        return int(self.sequences.completion_lengths.sum())

    @property
    def lengths(self) -> list[int]:
        """Tokens of each sequence, prompt and completion together."""
        lengths: list[int] = (self.sequences.prompt_lengths + self.sequences.completion_lengths).tolist()
        return lengths


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Some rows of a batch, with no more padding than they need themselves."""

    rows: Tensor
    """[b] int64 indices into the batch."""
    sequences: PaddedSequences
    completion_mask: Tensor
    """[b, t] bool, t the longest completion of these rows."""

    def take(self, tensor: Tensor) -> Tensor:
        """Returns these rows of a [B, T] tensor, cut to [b, t]."""
        return tensor[self.rows, : self.completion_mask.shape[1]]

    def put(self, values: Tensor, into: Tensor) -> None:
        """Writes [b, t] values to these rows of a [B, T] tensor, in place."""
        into[self.rows, : values.shape[1]] = values


def collate(samples: Sequence[Sample], device: torch.device | str = "cpu") -> Batch:
    """Returns the samples as tensors, in their order. Raises: ValueError if there are none."""
    sequences = pad_sequences(
        [sample.rollout.prompt_ids for sample in samples], [sample.rollout.completion_ids for sample in samples]
    )
    mask = sequences.completion_mask
    numbers: dict[str, int] = {}
    group_ids = [numbers.setdefault(sample.rollout.group_id, len(numbers)) for sample in samples]
    return Batch(
        sequences=sequences.to(device),
        completion_mask=mask.to(device),
        sampler_logprobs=_scatter([sample.rollout.logprobs for sample in samples], mask).to(device),
        ref_logprobs=_scatter([sample.ref_logprobs for sample in samples], mask).to(device),
        rewards=torch.tensor([sample.reward for sample in samples], dtype=torch.float32, device=device),
        group_ids=torch.tensor(group_ids, device=device),
        stopped=torch.tensor([sample.rollout.finish_reason == "stop" for sample in samples], device=device),
    )


def micro_batches(batch: Batch, units: Sequence[Sequence[int]], max_tokens: int) -> list[MicroBatch]:
    """Returns the rows in micro-batches of at most max_tokens tokens each.

    Args:
        units: rows that must stay together; one that is longer than max_tokens goes alone.
    """
    lengths = batch.lengths
    groups = split_by_tokens([sum(lengths[row] for row in unit) for unit in units], max_tokens)
    return [_select(batch, [row for index in group for row in units[index]]) for group in groups]


def _select(batch: Batch, rows: list[int]) -> MicroBatch:
    sequences = batch.sequences
    index = torch.tensor(rows, device=sequences.input_ids.device)
    prompt_lengths, completion_lengths = sequences.prompt_lengths[index], sequences.completion_lengths[index]
    longest = int((prompt_lengths + completion_lengths).max())
    selected = PaddedSequences(sequences.input_ids[index, :longest], prompt_lengths, completion_lengths)
    return MicroBatch(index, selected, selected.completion_mask)


def _scatter(values: Sequence[Sequence[float]], mask: Tensor) -> Tensor:
    """Returns lists of numbers at the True positions of mask [B, T], 0 elsewhere."""
    flat = torch.tensor([value for row in values for value in row], dtype=torch.float32)
    return torch.zeros(mask.shape).masked_scatter(mask, flat)
