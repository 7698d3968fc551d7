"""Takes training steps of one side, in a process of its own, and writes their times and its peak memory as JSON.

python train_worker.py --work work.json --side ours --mode bf16 --task sft --steps 4 --output result.json
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import torch

from bench.train_work import TASKS, TrainWork


def main() -> None:
    """Take the steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--side", choices=("ours", "trl"), required=True)
    parser.add_argument("--mode", required=True)
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    work = TrainWork.load(arguments.work)
    # Each side imports what it needs and no more, for its memory is measured.
    if arguments.side == "ours":
        seconds = _our_seconds(arguments.task, work, arguments.steps)
    else:
        from bench.trl_training import run

        with tempfile.TemporaryDirectory() as folder:
            seconds = run(arguments.task, arguments.mode, work, arguments.steps, folder)
    result = {
        "seconds": seconds,
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "threads": torch.get_num_threads(),
    }
    arguments.output.write_text(json.dumps(result))


def _our_seconds(task: str, work: TrainWork, steps: int) -> list[float]:
    from bench.our_training import step_of

    step = step_of(task, work)
    seconds = []
    for _ in range(steps):
        started = time.monotonic()
        step()
        seconds.append(time.monotonic() - started)
    return seconds


if __name__ == "__main__":
    main()
