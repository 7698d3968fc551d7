"""Measures the reward service under load: python bench/reward_service.py [--model smollm2] [--seconds 15] [--json FILE]

Requests per second and latencies at several numbers of callers, over gRPC and HTTP; tokens per second beside the same
model in an offline loop; what happens past capacity; and all of it beside a server that runs one request at a time. See
docs/benchmarks.md.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.measurements import load_average, machine_facts, positive, say, show, write_json
from bench.reward_requests import MODELS, prepare_work
from bench.reward_sides import Load, Side, StartError, measure_offline, running_baseline, running_service, work_file
from bench.reward_work import RewardWork
from bench.worker import WorkerError
from rlhf.process import sleep_at_barriers
from rlhf_cli.errors import LocalServiceError
from rlhf_cli.local.supervisor import interrupt_on_signals

FORMS = ("grpc", "http")
CALLERS = (1, 8, 64, 256)
BASELINE_CALLERS = (1, 8, 64)
EFFICIENCY_CALLERS = 64
CAPACITY_CALLERS = 64
OVERLOAD = 4
"""Past capacity, so many times as many callers."""
GOOD_ENOUGH = 0.97
"""The service gets the smallest batches that are so nearly the fastest offline: they make it answer sooner."""


def main() -> int:
    """Measure, print the tables; returns the exit code."""
    arguments = _parse()
    # As the service does by itself; the other sides inherit it. All of them share the cores with what makes the load.
    sleep_at_barriers()
    try:
        with interrupt_on_signals():
            _measure(arguments)
    except (WorkerError, StartError, LocalServiceError) as error:
        say(f"reward_service: {error}")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _measure(arguments: argparse.Namespace) -> None:
    folder, load_before = arguments.folder, load_average()
    work = prepare_work(folder, arguments.model, arguments.requests)
    work.save(work_file(folder))
    say(work.describe())
    offline = [measure_offline(folder, arguments.seconds, arguments.budget)]
    budget = arguments.budget or _small_budget(offline[0]["trials"])
    load = Load(folder, work, arguments.warmup, arguments.seconds, offline[0]["tokens_per_second"])
    flags = ["--limits.max_batch_tokens", str(budget)]
    with running_service(folder, work.model_path, flags) as side:
        efficiency = _efficiency(load, side, offline, arguments.rounds)
        phases = [load.measure(side, form, callers) for form in FORMS for callers in arguments.callers]
        drop_in = load.measure(side, "get_reward", max(BASELINE_CALLERS))
    with running_baseline(folder, work.model_path) as side:
        baseline = [load.measure(side, "get_reward", callers) for callers in BASELINE_CALLERS]
    overload = _overload(load, work, flags)
    result = {
        "work": work.describe(),
        "machine": machine_facts(),
        "load_before": load_before,
        "settings": {"warmup": arguments.warmup, "seconds": arguments.seconds, "max_batch_tokens": budget},
        "offline": offline,
        "efficiency": efficiency,
        "phases": phases,
        "drop_in": drop_in,
        "baseline": baseline,
        "overload": overload,
    }
    _show(result, to_stderr=arguments.json == "-")
    if arguments.json:
        write_json(result, arguments.json)


def _small_budget(trials: dict[str, float]) -> int:
    """Tokens of a batch, of those that were tried offline."""
    fastest = max(trials.values())
    return min(int(budget) for budget, speed in trials.items() if speed >= GOOD_ENOUGH * fastest)


def _efficiency(load: Load, side: Side, offline: list[dict[str, Any]], rounds: int) -> dict[str, Any]:
    """The service's tokens per second over the offline loop's, in turn; the loop's later turns are added to `offline`.

    A turn of the service lies between two of the loop, and is divided by their mean.
    """
    served, ratios = [], []
    for _ in range(rounds):
        served.append(load.measure(side, "grpc", EFFICIENCY_CALLERS))
        offline.append(measure_offline(load.folder, load.seconds, offline[0]["budget"]))
        around = statistics.fmean(each["tokens_per_second"] for each in offline[-2:])
        ratios.append(served[-1]["tokens_per_second"] / around)
        say(f"efficiency {ratios[-1]:.3f}")
    return {"median": statistics.median(ratios), "ratios": ratios, "served": served}


def _overload(load: Load, work: RewardWork, flags: Sequence[str]) -> dict[str, Any]:
    """A service whose queue holds as many items as there are callers at capacity, with those, and with many more."""
    limit = str(CAPACITY_CALLERS)
    bounds = ["--limits.max_items", limit, "--limits.max_queue_items", limit]
    with running_service(load.folder, work.model_path, [*flags, *bounds]) as side:
        capacity = load.measure(side, "grpc", CAPACITY_CALLERS)
        past = load.measure(side, "grpc", OVERLOAD * CAPACITY_CALLERS)
    ratio = _p99(past) / _p99(capacity) if _p99(capacity) else 0.0
    return {"max_queue_items": CAPACITY_CALLERS, "capacity": capacity, "past": past, "p99_ratio": ratio}


def _p99(phase: dict[str, Any]) -> float:
    return float(phase["latency_seconds"].get("p99", 0.0))


def _show(result: dict[str, Any], *, to_stderr: bool) -> None:
    named = [(f"{each['form']} {each['callers']}", each) for each in [*result["phases"], result["drop_in"]]]
    named += [(f"plain {each['callers']}", each) for each in result["baseline"]]
    headings = ["callers", "req/s", "tok/s", "p50 s", "p95 s", "p99 s", "probe", "load"]
    title = (
        "Under load; probe: p99 s of the health probe, load: cores that the load took, plain: the server beside ours"
    )
    show(title, headings, [_row(name, each) for name, each in named], to_stderr=to_stderr)
    offline = statistics.median(each["tokens_per_second"] for each in result["offline"])
    served = statistics.median(each["tokens_per_second"] for each in result["efficiency"]["served"])
    rows = [
        ["offline loop, tokens/s", f"{offline:.0f}"],
        [f"service, {EFFICIENCY_CALLERS} callers, tokens/s", f"{served:.0f}"],
        ["efficiency, median of turns", f"{result['efficiency']['median']:.3f}"],
    ]
    show("Beside an offline loop", ["", "value"], rows, to_stderr=to_stderr)
    overload = result["overload"]
    # Without probe and load, which the first table has.
    rows = [_row(str(overload[name]["callers"]), overload[name])[:-2] for name in ("capacity", "past")]
    for row, name in zip(rows, ("capacity", "past"), strict=True):
        refusal = overload[name]["refusal_seconds"]
        row += [str(overload[name]["refusals"]), f"{refusal['p99']:.3f}" if refusal else ""]
    title = f"Past capacity, p99 is {overload['p99_ratio']:.2f} times that at capacity"
    show(title, [*headings[:-2], "refused", "in p99 s"], rows, to_stderr=to_stderr)


def _row(name: str, phase: dict[str, Any]) -> list[str]:
    latency, probe = phase["latency_seconds"], phase["probe_seconds"]
    return [
        name,
        f"{phase['requests_per_second']:.1f}",
        f"{phase['tokens_per_second']:.0f}",
        *(f"{latency[part]:.3f}" if latency else "" for part in ("p50", "p95", "p99")),
        f"{probe['p99']:.3f}" if probe else "",
        f"{phase['load_cpu']:.2f}",
    ]


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="smollm2", help="whose rewards are served, in bfloat16")
    parser.add_argument("--callers", type=positive, nargs="+", default=list(CALLERS), help="at a time")
    parser.add_argument("--seconds", type=float, default=15.0, help="that a phase is measured for; longer if need be")
    parser.add_argument("--warmup", type=float, default=4.0, help="seconds before that; longer if need be")
    parser.add_argument("--rounds", type=positive, default=3, help="turns of service and offline loop")
    parser.add_argument("--requests", type=positive, default=1024, help="different ones, sent in turn")
    parser.add_argument("--budget", type=positive, help="tokens of a batch; found out offline if absent")
    parser.add_argument("--folder", type=Path, default=Path("build/bench"), help="for models, logs and results")
    parser.add_argument("--json", "--output", metavar="FILE", help="also write JSON; - for standard output")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
