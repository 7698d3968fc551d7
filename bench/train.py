"""Measures training steps beside TRL's: python bench/train.py [--tasks sft reward dpo ppo] [--steps 4] [--rounds 2]

Each side takes the same optimizer steps (bench/train_work.py) in fresh processes of its own, in turn: ours, TRL in
fp32, TRL in bf16, ours, and so on. Tokens per second and peak memory are medians and maxima over all of them.
"""

import argparse
import statistics
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from bench.measurements import load_average, machine_facts, positive, say, show, write_json
from bench.train_work import TASKS, TrainWork
from bench.trl_environment import TRL_VERSION
from bench.worker import WorkerError, run_worker
from rlhf_cli.local.supervisor import interrupt_on_signals

SIDES = (("ours", "bf16"), ("trl", "fp32"), ("trl", "bf16"))
TITLES = {"sft": "SFT", "reward": "reward model", "dpo": "DPO", "ppo": "PPO update"}
WORKER = Path(__file__).with_name("train_worker.py")


def main() -> int:
    """Measure, print the table; returns the exit code."""
    arguments = _parse()
    try:
        with interrupt_on_signals():
            return _measure(arguments)
    except WorkerError as error:
        say(f"train: {error}")
        return 1
    except KeyboardInterrupt:
        return 130


def _measure(arguments: argparse.Namespace) -> int:
    work = TrainWork.prepare(arguments.folder, arguments.sequences, arguments.model)
    work.save(arguments.folder / "train-work.json")
    say(work.describe())
    # Our side last once more, so that a machine that grows slower or faster does not favour one side.
    turns = SIDES[:1] * arguments.rounds if arguments.ours_only else [*SIDES * arguments.rounds, SIDES[0]]
    blocks: list[dict[str, Any]] = []
    for task in arguments.tasks:
        for side, mode in turns:
            load = load_average()
            block = _run(arguments.folder, task, side, mode, arguments.steps)
            blocks.append({"task": task, "side": side, "mode": mode, "load_before": load, **block})
            times = " ".join(f"{seconds:.2f}" for seconds in block["seconds"])
            say(f"{task} {side} {mode}: {times} s, {block['peak_memory_bytes'] / 2**30:.2f} GiB")
    result = _summarise(work, blocks)
    _show(result, to_stderr=arguments.json == "-")
    if arguments.json:
        write_json(result, arguments.json)
    return 0


def _run(folder: Path, task: str, side: str, mode: str, steps: int) -> dict[str, Any]:
    """The result of a fresh process. Raises: WorkerError."""
    result_path, log_path = (folder / f"train-{task}-{side}-{mode}.{end}" for end in ("json", "log"))
    command = [sys.executable, str(WORKER), "--work", str(folder / "train-work.json"), "--side", side, "--mode", mode]
    command += ["--task", task, "--steps", str(steps)]
    return run_worker(f"{task}, {side} {mode},", command, result_path, log_path)


def _summarise(work: TrainWork, blocks: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of the steps of each task and side, the first of each process left out, and peak memory."""
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    peaks: dict[tuple[str, str], list[float]] = defaultdict(list)
    for block in blocks:
        key = (block["task"], f"{block['side']} {block['mode']}")
        seconds[key] += block["seconds"][1:] or block["seconds"]
        peaks[key].append(block["peak_memory_bytes"])
    tasks: dict[str, dict[str, Any]] = defaultdict(dict)
    for (task, name), times in seconds.items():
        median = statistics.median(times)
        tasks[task][name] = {
            "median_seconds": median,
            "tokens_per_second": work.num_tokens(task) / median,
            "peak_memory_bytes": max(peaks[task, name]),
        }
    return {"work": work.describe(), "machine": machine_facts(), "tasks": tasks, "blocks": blocks}


def _show(result: dict[str, Any], *, to_stderr: bool) -> None:
    rows = []
    for task, sides in result["tasks"].items():
        ours = sides["ours bf16"]
        for name, each in sides.items():
            is_ours = each is ours
            rows.append(
                [
                    f"{TITLES[task]}, {name.replace('trl', f'TRL {TRL_VERSION}')}",
                    f"{each['median_seconds']:.2f}",
                    f"{each['tokens_per_second']:.0f}",
                    "" if is_ours else f"{each['median_seconds'] / ours['median_seconds']:.2f}",
                    f"{each['peak_memory_bytes'] / 2**30:.2f}",
                    "" if is_ours else f"{each['peak_memory_bytes'] / ours['peak_memory_bytes']:.2f}",
                ]
            )
    headings = ["step", "seconds", "tokens/s", "times ours", "peak GiB", "times ours"]
    show("Training steps, side by side", headings, rows, to_stderr=to_stderr)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--steps", type=positive, default=4, help="of each process; the first warms up")
    parser.add_argument("--rounds", type=positive, default=1, help="turns of all sides")
    parser.add_argument("--sequences", type=positive, default=16, help="of a step; a multiple of 8")
    parser.add_argument("--ours-only", action="store_true", help="leave TRL out")
    parser.add_argument("--model", type=Path, help="folder of a causal language model; SmolLM2-135M if absent")
    parser.add_argument("--folder", type=Path, default=Path("build/bench"), help="for models, logs and results")
    parser.add_argument("--json", metavar="FILE", help="also write JSON; - for standard output")
    arguments = parser.parse_args()
    if arguments.sequences % 8:
        parser.error(f"--sequences is {arguments.sequences}; TRL takes 8 at a time, so it must be a multiple of 8")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
