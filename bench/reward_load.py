"""Makes load for a reward service, in a process of its own: python bench/reward_load.py --help

So many callers, each of which sends one request, waits for the reward and sends the next. Messages are encoded before
the clock runs. A refused caller comes again when it was told to. Beside them, a probe asks for the service's health.
"""

import argparse
import asyncio
import random
import resource
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.measurements import write_json
from bench.reward_senders import FORMS, FailedError, RefusedError, Sender, open_sender
from bench.reward_work import RewardWork

PROBE_SECONDS = 0.1
Event = tuple[float, float, int]
"""When it ended, how long it took, and its tokens."""


@dataclass(slots=True)
class Record:
    """What happened; times are those of time.perf_counter()."""

    scored: list[Event] = field(default_factory=list)
    refused: list[Event] = field(default_factory=list)
    probed: list[Event] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def main() -> None:
    """Make load, and write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="file of RewardWork")
    parser.add_argument("--form", choices=FORMS, required=True, help="of a call")
    parser.add_argument("--target", required=True, help="host:port")
    parser.add_argument("--metrics", default="", help="URL of the service's Prometheus metrics")
    parser.add_argument("--callers", type=int, required=True)
    parser.add_argument("--warmup", type=float, required=True, help="seconds that are not counted")
    parser.add_argument("--seconds", type=float, required=True, help="seconds that are")
    parser.add_argument("--output", required=True, help="file for the result as JSON")
    write_json(asyncio.run(measure(arguments := parser.parse_args())), arguments.output)


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of the counted time."""
    work = RewardWork.load(arguments.work)
    record = Record()
    async with open_sender(arguments.form, arguments.target, work) as sender:
        tasks = [asyncio.create_task(_call_on(sender, number, work, record)) for number in range(arguments.callers)]
        tasks.append(asyncio.create_task(_probe_on(sender, record)))
        await asyncio.sleep(arguments.warmup)
        begin, own_cpu = time.perf_counter(), _own_cpu_seconds()
        before = await asyncio.to_thread(_read_metrics, arguments.metrics)
        await asyncio.sleep(arguments.seconds)
        end, own_cpu = time.perf_counter(), _own_cpu_seconds() - own_cpu
        after = await asyncio.to_thread(_read_metrics, arguments.metrics)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    service = {name: after[name] - before[name] for name in after if name in before}
    return {**summary(record, begin, end), "load_cpu": own_cpu / (end - begin), **_shares(service, end - begin)}


async def _call_on(sender: Sender, number: int, work: RewardWork, record: Record) -> None:
    """One caller, which goes on until it is cancelled."""
    place = random.Random(number).randrange(len(work.requests))
    while True:
        place = (place + 1) % len(work.requests)
        num_tokens = len(work.requests[place].ids)
        begin = time.perf_counter()
        try:
            await sender.score(place, number)
        except RefusedError as refusal:
            record.refused.append((time.perf_counter(), time.perf_counter() - begin, num_tokens))
            await asyncio.sleep(refusal.retry_after_seconds)
        except FailedError as error:
            record.failures.append(str(error))
            await asyncio.sleep(1.0)
        else:
            record.scored.append((time.perf_counter(), time.perf_counter() - begin, num_tokens))


async def _probe_on(sender: Sender, record: Record) -> None:
    """Asks for the service's health several times a second, one question after the other."""
    while True:
        begin = time.perf_counter()
        try:
            await sender.probe()
        except FailedError as error:
            record.failures.append(str(error))
        record.probed.append((time.perf_counter(), time.perf_counter() - begin, 0))
        await asyncio.sleep(PROBE_SECONDS)


def summary(record: Record, begin: float, end: float) -> dict[str, Any]:
    """Rates and latencies of what ended between two moments.

    Rewards come in bursts, a batch at a time. So the rates are taken from the end of one burst to the end of another:
    from the last reward before `begin` to the last before `end`.
    """
    since = max((moment for moment, _, _ in record.scored if moment <= begin), default=begin)
    until = max((moment for moment, _, _ in record.scored if moment <= end), default=end)
    counted = [event for event in record.scored if since < event[0] <= until]
    seconds = until - since if counted else end - begin
    return {
        "seconds": seconds,
        "requests": len(counted),
        "requests_per_second": len(counted) / seconds,
        "tokens_per_second": sum(tokens for _, _, tokens in counted) / seconds,
        "latency_seconds": percentiles([latency for _, latency, _ in counted]),
        "refusals": sum(begin < moment <= end for moment, _, _ in record.refused),
        "refusal_seconds": percentiles([latency for moment, latency, _ in record.refused if begin < moment <= end]),
        "probe_seconds": percentiles([latency for moment, latency, _ in record.probed if begin < moment <= end]),
        "failures": len(record.failures),
        "failure": record.failures[0] if record.failures else "",
    }


def percentiles(values: list[float]) -> dict[str, float]:
    """The values below which so many of a hundred lie, as nearest ranks, and the largest; empty without values."""
    if not values:
        return {}
    ordered = sorted(values)
    ranks = {f"p{part}": ordered[max(0, -(-len(ordered) * part // 100) - 1)] for part in (50, 95, 99)}
    return {**ranks, "max": ordered[-1]}


def _own_cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _read_metrics(url: str) -> dict[str, float]:
    """The service's metrics that have no labels; none without a URL."""
    if not url:
        return {}
    with urllib.request.urlopen(url, timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return {line.split()[0]: float(line.split()[1]) for line in lines if line[0] != "#" and "{" not in line}


def _shares(service: dict[str, float], seconds: float) -> dict[str, float]:
    """What the service says of itself: cores used, share of the time that its model ran, its batches."""
    if not service:
        return {}
    batches = service["rlhf_reward_batch_items_count"]
    return {
        "service_cpu": service["process_cpu_seconds_total"] / seconds,
        "model_busy": service["rlhf_reward_model_seconds_sum"] / seconds,
        "batch_items": service["rlhf_reward_batch_items_sum"] / batches if batches else 0.0,
        "padding": service["rlhf_reward_padding_ratio_sum"] / batches if batches else 0.0,
    }


if __name__ == "__main__":
    main()
