"""Runs in a pod: prints the replicas that an entry of services.policy_targets names, a line of JSON for each answer.

Usage: watch_replicas.py ENTRY COUNT...: ends once there were as many replicas as each COUNT says, in that order.
"""

import asyncio
import json
import sys

from services.trainer.fleet.discovery import discover


async def main(entry: str, *counts: str) -> None:
    expected = [int(count) for count in counts]
    async with asyncio.timeout(600):
        async for replicas in discover([entry], lambda report: print(report, file=sys.stderr)).watch():
            print(json.dumps(sorted(replicas)), flush=True)
            if len(replicas) == expected[0]:
                del expected[0]
            if not expected:
                return


asyncio.run(main(*sys.argv[1:]))
