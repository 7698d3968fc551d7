"""What all ranks of a run do together: exchange what each has, or fail together."""

import asyncio
import json
from typing import Any

from rlhf.errors import NotReadyError, RunError, ServiceError
from rlhf.learning.ranks import Ranks


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
