"""How long a weight push takes: `make bench-weight-push`, or python bench/weight_push.py [--json FILE].

Pushes SmolLM2 to the real policy service with vLLM, whole and as a patch of 1 % of its elements, with the CPU's layers
computing with packed copies and in place; measures raw TCP and memcpy in the same run; then, unless told otherwise, how
much real PPO steps change (weight_push_fractions.py).
"""

import argparse
import asyncio
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bench.fixed_work import FixedWork
from bench.measurements import load_average, machine_facts, positive, say, show, write_json
from bench.weight_push_fractions import HEADINGS, RATES, measure_fractions, rows
from bench.weight_push_raw import memcpy_bytes_per_second, tcp_bytes_per_second
from bench.weight_push_service import ENCODINGS, MODES, ModeResult, Push, measure_mode

GIB = 2**30


def push_rows(results: Sequence[ModeResult], tcp: float) -> list[list[str]]:
    """Returns the medians of each kind of push in each mode, one row for each."""
    table = []
    for result in results:
        for encoding in ENCODINGS:
            pushes = [push for push in result.pushes if push.encoding == encoding]
            snapshot, stage, pause, total = (
                statistics.median(getattr(push, name) for push in pushes)
                for name in ("snapshot_seconds", "stage_seconds", "pause_seconds", "call_seconds")
            )
            num_bytes = statistics.median(push.num_bytes for push in pushes)
            table.append(
                [
                    f"{result.cpu_weights}, {'full' if encoding == 'full' else 'patch'}",
                    f"{num_bytes / 1e6:.2f}",
                    f"{snapshot:.2f}",
                    f"{stage:.3f}",
                    f"{num_bytes / stage / GIB:.2f} ({num_bytes / stage / tcp:.0%})" if encoding == "full" else "",
                    f"{pause * 1e3:.0f}",
                    f"{total:.3f}",
                ]
            )
    return table


PUSH_HEADINGS = ("push", "MB", "snapshot s", "transfer, verify s", "GiB/s (of TCP)", "pause ms", "call s")


def first_rows(results: Sequence[ModeResult]) -> list[list[str]]:
    """Returns what the medians leave out, and how fast each mode samples."""
    return [
        [
            result.cpu_weights,
            f"{result.tokens_per_second:.0f}",
            *(f"{_first(result.warm_up, encoding) * 1e3:.0f}" for encoding in ENCODINGS),
        ]
        for result in results
    ]


FIRST_HEADINGS = ("mode", "tokens/s, 32 at once", "pause of first push, ms", "of first patch, ms")


def _first(pushes: Sequence[Push], encoding: str) -> float:
    return next(push.pause_seconds for push in pushes if push.encoding == encoding)


def main() -> int:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pushes", type=positive, default=7, help="measured, of each kind")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="vllm.cpu_weights")
    parser.add_argument("--no-fractions", action="store_true", help="take no PPO steps")
    parser.add_argument("--folder", type=Path, default=Path("build/bench"), help="for models and logs")
    parser.add_argument("--json", metavar="FILE", help="also write JSON; - for standard output")
    arguments = parser.parse_args()
    work = FixedWork.prepare(arguments.folder)
    load, to_stderr = load_average(), arguments.json == "-"
    tcp, memcpy = tcp_bytes_per_second(), memcpy_bytes_per_second()
    results = []
    for mode in arguments.modes:
        say(f"pushing to vLLM, {mode}")
        results.append(asyncio.run(measure_mode(mode, work, arguments.folder, num_pushes=arguments.pushes)))
        tcp += tcp_bytes_per_second()
    median_tcp = statistics.median(tcp)
    raw = [["TCP over loopback, one stream", f"{median_tcp / GIB:.2f}"]]
    raw.append(["memcpy, one thread", f"{statistics.median(memcpy) / GIB:.2f}"])
    show("Raw rates", ("what", "GiB/s"), raw, to_stderr=to_stderr)
    show("A weight push (medians)", PUSH_HEADINGS, push_rows(results, median_tcp), to_stderr=to_stderr)
    show("The CPU modes", FIRST_HEADINGS, first_rows(results), to_stderr=to_stderr)
    steps = [] if arguments.no_fractions else measure_fractions(work, rates=RATES)
    if steps:
        show("What a PPO step changes", HEADINGS, rows(steps), to_stderr=to_stderr)
    if arguments.json:
        result = {
            "machine": machine_facts(),
            "load_average": load,
            "tcp_bytes_per_second": tcp,
            "memcpy_bytes_per_second": memcpy,
            "modes": [asdict(each) for each in results],
            "steps": [asdict(each) for each in steps],
        }
        write_json(result, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
