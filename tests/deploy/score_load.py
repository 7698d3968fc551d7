"""Scores without a pause until standard input ends, then prints what came of it as JSON. Runs in a pod of the tests.

Usage: score_load.py TARGET NUM_CALLERS
"""

import asyncio
import json
import sys
import time
from collections import Counter

from rlhf.client import Reward, RewardClient, ScoreItem
from rlhf.errors import ServiceError

ITEMS = [ScoreItem.text("What is the capital of France?", "Paris.", item_id=str(index)) for index in range(4)]


async def score(client: RewardClient, until: asyncio.Event, outcomes: Counter[str], seconds: list[float]) -> None:
    """Calls again as soon as an answer is there, and counts the answers by their outcome."""
    while not until.is_set():
        started = time.monotonic()
        try:
            batch = await client.score(ITEMS, deadline_seconds=30)
        except ServiceError as error:
            outcomes[f"{type(error).__name__}: {error}"] += 1
        else:
            whole = len(batch.results) == len(ITEMS) and all(isinstance(each, Reward) for each in batch.results)
            outcomes["scored" if whole else f"not scored: {batch.results}"] += 1
        seconds.append(time.monotonic() - started)


async def main() -> None:
    """Loads one client from several callers, as a trainer does."""
    until, outcomes, seconds = asyncio.Event(), Counter[str](), list[float]()
    async with RewardClient(sys.argv[1]) as client:
        callers = [asyncio.create_task(score(client, until, outcomes, seconds)) for _ in range(int(sys.argv[2]))]
        await asyncio.to_thread(sys.stdin.read)
        until.set()
        await asyncio.gather(*callers)
    scored = outcomes.pop("scored", 0)
    print(json.dumps({"scored": scored, "failed": outcomes, "slowest_seconds": max(seconds)}))


asyncio.run(main())
