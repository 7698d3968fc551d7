"""Measures PPO steps of TRL's PPOTrainer on the fixed work: python bench/compare_trl.py [--modes fp32 bf16] [--steps 3]

TRL 1.12 is installed in an environment of its own on the first call. A step takes minutes on a machine without a GPU.
`python bench/ppo_step.py --compare` measures it side by side with ours.
"""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.fixed_work import QUESTIONS, FixedWork
from bench.measurements import Step, load_average, machine_facts, measured, medians, positive, say, show, write_json
from bench.trl_environment import TRL_VERSION, InstallError, default_environment, ensure_environment
from bench.worker import WorkerError, run_worker
from rlhf_cli.local.supervisor import interrupt_on_signals

MODES = ("fp32", "bf16", "bf16-weights")
"""fp32: what TRL's defaults come to where there is no GPU. bf16: TRL's bf16 setting, autocast over float32 weights.
bf16-weights: all models loaded in bfloat16 and trained in it, the fastest; most steps of a usual learning rate are then
too small to change a weight."""

MICRO_BATCH = 8
"""Sequences of one forward and backward pass; TRL's default."""

PHASES = {
    "generate_seconds": "generate",
    "score_seconds": "score: reference, values, rewards",
    "update_seconds": "update",
    "total_seconds": "in all",
}
WORKER = Path(__file__).with_name("trl_worker.py")


def measure_trl(
    python: Path, work: FixedWork, folder: Path, *, mode: str, steps: int, micro_batch: int = MICRO_BATCH
) -> list[Step]:
    """Returns the times of TRL's steps, the first included.

    Args:
        python: of TRL's environment.
        work: what a step does. folder: for the work's description, the log and the result.
        mode: one of MODES. steps: how many, at least 1. micro_batch: must divide the number of prompts.
    Raises: WorkerError.
    """
    work_path, result_path, log_path = (folder / f"trl-{mode}.{end}" for end in ("work.json", "result.json", "log"))
    work.save(work_path)
    command = [str(python), str(WORKER), "--work", str(work_path), "--mode", mode, "--steps", str(steps)]
    command += ["--micro-batch", str(micro_batch)]
    step_times: list[Step] = run_worker("TRL's process", command, result_path, log_path)["steps"]
    return step_times


def show_phases(medians_by_mode: Mapping[str, Step], *, to_stderr: bool) -> None:
    """Print where TRL's time goes."""
    rows = [[title, *(f"{each[name]:.1f}" for each in medians_by_mode.values())] for name, title in PHASES.items()]
    show("Median seconds of a PPO step in TRL", ["phase", *medians_by_mode], rows, to_stderr=to_stderr)


def micro_batch_size(text: str) -> int:
    """An argument's value. Raises: argparse.ArgumentTypeError unless it divides the number of prompts."""
    number = positive(text)
    if len(QUESTIONS) % number:
        raise argparse.ArgumentTypeError(f"{number} does not divide the {len(QUESTIONS)} prompts of a step")
    return number


def main() -> int:
    """Measure each mode and print the table; returns the exit code."""
    arguments = _parse()
    try:
        with interrupt_on_signals():
            return _measure(arguments)
    except (InstallError, WorkerError) as error:
        say(f"compare_trl: {error}")
        return 1
    except KeyboardInterrupt:
        return 130


def _measure(arguments: argparse.Namespace) -> int:
    work = FixedWork.prepare(arguments.folder)
    say(f"{work.describe()}; TRL {TRL_VERSION}")
    python = ensure_environment(arguments.venv)
    result: dict[str, Any] = {"work": work.describe(), "machine": machine_facts(), "trl": {}}
    for mode in arguments.modes:
        load = load_average()
        say(f"TRL {mode}: {arguments.steps} steps")
        steps = measure_trl(
            python, work, arguments.folder, mode=mode, steps=arguments.steps, micro_batch=arguments.micro_batch
        )
        result["trl"][mode] = {"load_before": load, "steps": steps, "median": medians(measured(steps))}
    show_phases({mode: each["median"] for mode, each in result["trl"].items()}, to_stderr=arguments.json == "-")
    if arguments.json:
        write_json(result, arguments.json)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--steps", type=positive, default=3, help="of each mode; the first of 3 or more warms up")
    parser.add_argument("--micro-batch", type=micro_batch_size, default=MICRO_BATCH, help="sequences of a pass")
    parser.add_argument("--venv", type=Path, default=default_environment(), help="TRL's environment")
    parser.add_argument("--folder", type=Path, default=Path("build/bench"), help="for models, logs and results")
    parser.add_argument("--json", metavar="FILE", help="also write JSON; - for standard output")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
