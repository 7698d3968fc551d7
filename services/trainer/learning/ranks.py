"""The processes of one training run: torchrun starts several ranks, anything else is one rank alone.

Every rank holds the whole batch of a step, so whatever is normalised over the batch is computed alike on all of them,
and differs in nothing from a run of one rank. What is divided is the work: services are called for a rank's share of
the prompts, and forward and backward passes run for its share of the micro-batches.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Share(Generic[T]):
    """One micro-batch of a rank."""

    item: T
    weight: float
    """1.0; 0.0 for a filler, which keeps the ranks' collectives in step: its loss and its metrics count nothing."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among all."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this rank talks: the console, the TrainerService, metrics, weight pushes."""
        return self.rank == 0

    def share(self, items: Sequence[T]) -> list[Share[T]]:
        """Returns this rank's items, one in world_size of them; every rank gets equally many."""
        rounds = -(-len(items) // self.world_size)
        indices = [self.rank + turn * self.world_size for turn in range(rounds)]
        return [Share(items[i], 1.0) if i < len(items) else Share(items[0], 0.0) for i in indices]

    def sum_(self, tensor: Tensor) -> Tensor:
        """Makes a tensor the sum of all ranks' tensors, in place, and returns it."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """Returns the bytes of every rank, in the order of ranks. Bytes, so that nothing has to be pickled."""
        if self.world_size == 1:
            return [data]
        sizes = torch.zeros(self.world_size, dtype=torch.int64)
        sizes[self.rank] = len(data)
        dist.all_reduce(sizes)
        longest = int(sizes.max())
        mine = torch.zeros(longest, dtype=torch.uint8)
        mine[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else mine[:0]
        all_bytes = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(all_bytes, mine)
        return [each[:size].numpy().tobytes() for each, size in zip(all_bytes, sizes.tolist(), strict=True)]

    def barrier(self) -> None:
        """Waits for all ranks."""
        if self.world_size > 1:
            dist.barrier()


def join_ranks() -> Ranks:
    """Joins the process group that torchrun's environment describes; one rank alone without it."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        return Ranks()
    if not dist.is_initialized():
        # Bytes and counts travel on the CPU, gradients where the model is.
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    return Ranks(dist.get_rank(), world_size)
