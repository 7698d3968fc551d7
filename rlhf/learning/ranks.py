"""The processes of one training run: torchrun starts several ranks, anything else is one rank alone.

Every rank holds the whole batch of a step, so whatever is normalised over the batch is computed alike on all of them,
and differs in nothing from a run of one rank. What is divided is the work: services are called for a rank's share of
the prompts, and forward and backward passes run for its share of the micro-batches.
"""

import asyncio
import atexit
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor

from rlhf.errors import ConfigError, NotReadyError, RunError, ServiceError

T = TypeVar("T")

COLLECTIVE_TIMEOUT = timedelta(days=7)
"""How long ranks wait for one another: a run may be paused, or wait for a service. A rank that dies ends the others."""


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
        """Makes a tensor the sum of all ranks' tensors, in place, and returns it. Bit for bit the same on all ranks."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum_values(self, values: Mapping[str, float]) -> dict[str, float]:
        """Returns every value added up over the ranks, in float64; all ranks must have the same names."""
        names = sorted(values)
        total = self.sum_(torch.tensor([values[name] for name in names], dtype=torch.float64))
        return dict(zip(names, total.tolist(), strict=True))

    def gather_bytes(self, data: bytes) -> list[bytes]:
        """Returns the bytes of every rank, in the order of ranks. Bytes, so that nothing has to be pickled."""
        if self.world_size == 1:
            return [data]
        sizes = torch.zeros(self.world_size, dtype=torch.int64)
        sizes[self.rank] = len(data)
        longest = int(self.sum_(sizes).max())
        if longest == 0:
            return [b""] * self.world_size
        mine = torch.frombuffer(bytearray(data.ljust(longest, b"\0")), dtype=torch.uint8)
        all_bytes = [torch.empty_like(mine) for _ in range(self.world_size)]
        dist.all_gather(all_bytes, mine)
        return [each[:size].numpy().tobytes() for each, size in zip(all_bytes, sizes.tolist(), strict=True)]

    def together(self, action: Callable[[], None]) -> None:
        """Has every rank write files; raises OSError on all if one cannot, so that none waits for it in vain."""
        problem = ""
        try:
            action()
        except (OSError, SafetensorError) as error:  # safetensors has no type of its own for a full disk
            problem = str(error)
        for rank, found in enumerate(self.gather_bytes(problem.encode())):
            if found:
                raise OSError(f"rank {rank}: {found.decode()}" if self.world_size > 1 else found.decode())

    def barrier(self) -> None:
        """Waits for all ranks. A sum on the CPU, as NCCL's barrier would have to guess a device."""
        self.sum_(torch.zeros(1))


ALONE = Ranks()
"""One process alone."""


def join_ranks() -> Ranks:
    """Joins the process group that torchrun's environment describes; one rank alone without it.

    Raises: ConfigError if there are fewer GPUs than ranks on this machine.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Ranks()
    take_own_gpu()
    if not dist.is_initialized():
        # Bytes and counts travel on the CPU, gradients where the model is.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=COLLECTIVE_TIMEOUT)
        atexit.register(dist.destroy_process_group)
    return Ranks(dist.get_rank(), dist.get_world_size())


def take_own_gpu() -> None:
    """Makes "cuda" mean the GPU of this rank, in this thread: each thread that computes must call it.

    Raises: ConfigError if there are fewer GPUs than ranks on this machine.
    """
    if not torch.cuda.is_available():
        return
    local_rank, num_gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local_rank >= num_gpus:
        raise ConfigError(
            f"LOCAL_RANK is {local_rank}, but this machine has {num_gpus} GPUs; start torchrun with --nproc-per-node "
            "of at most that"
        )
    torch.cuda.set_device(local_rank)


async def exchange(message: dict[str, Any], ranks: Ranks) -> list[dict[str, Any]]:
    """Returns what every rank sends, in their order; all call it. Args: message: what JSON can say.

    Raises: RunError or NotReadyError if another rank sent its failure instead.
    """
    messages = await _exchange(message, ranks)
    for rank, each in enumerate(messages):
        if "failure" in each:
            error_class = NotReadyError if each["is_service"] else RunError
            raise error_class(f"rank {rank}: {each['failure']}")
    return messages


async def exchange_failure(error: ServiceError | RunError, ranks: Ranks) -> None:
    """Lets the other ranks know that this one has nothing to send: instead of waiting for it, they fail as well."""
    await _exchange({"failure": str(error), "is_service": isinstance(error, ServiceError)}, ranks)


async def _exchange(message: dict[str, Any], ranks: Ranks) -> list[dict[str, Any]]:
    if ranks.world_size == 1:
        return [message]
    # In a thread: the slowest rank may take minutes, and the TrainerService must answer meanwhile.
    gathered = await asyncio.to_thread(ranks.gather_bytes, json.dumps(message).encode())
    return [json.loads(each) for each in gathered]
