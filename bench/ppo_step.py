"""Measures PPO steps of this project on the fixed work: python bench/ppo_step.py [--steps 5] [--compare]

The real thing runs: policy (vLLM), reward and reference services as processes that talk gRPC, and the trainer. With
--compare, TRL's PPOTrainer does the same work in turn with ours: ours, TRL in fp32, ours, TRL in bf16, ours, and so on.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from bench.compare_trl import MICRO_BATCH, MODES, WorkerError, measure_trl, micro_batch_size, show_phases
from bench.fixed_work import FixedWork
from bench.local_run import PHASES, RunFailedError, measure_ours
from bench.measurements import Step, load_average, machine_facts, measured, medians, positive, say, show, write_json
from bench.trl_environment import TRL_VERSION, InstallError, default_environment, ensure_environment
from rlhf.models.weights import checkpoint_manifest
from rlhf_cli.local.supervisor import ServiceDiedError, interrupt_on_signals

OURS = "ours"


def main() -> int:
    """Measure, print the tables; returns the exit code."""
    arguments = _parse()
    try:
        with interrupt_on_signals():
            return _measure(arguments)
    except (InstallError, WorkerError, RunFailedError, ServiceDiedError) as error:
        say(f"ppo_step: {error}")
        return 1
    except KeyboardInterrupt:
        return 130


def _measure(arguments: argparse.Namespace) -> int:
    work = FixedWork.prepare(arguments.folder)
    say(work.describe())
    schedule = [OURS]
    python = Path(sys.executable)
    if arguments.compare:
        python = ensure_environment(arguments.venv)
        schedule += [name for mode in arguments.trl_modes for name in (mode, OURS)]
    blocks: list[dict[str, Any]] = []
    for name in schedule:
        load = load_average()
        say(f"{name}: {arguments.steps if name == OURS else arguments.trl_steps} steps")
        if name == OURS:
            steps = measure_ours(work, arguments.folder, steps=arguments.steps)
        else:
            steps = measure_trl(
                python, work, arguments.folder, mode=name, steps=arguments.trl_steps, micro_batch=arguments.micro_batch
            )
        blocks.append({"name": name, "load_before": load, "steps": steps})
        times = " ".join(f"{step['total_seconds']:.1f}" for step in steps)
        say(f"{name}: {times} s")
    result = _summarise(work, blocks)
    _show(work, result, to_stderr=arguments.json == "-")
    if arguments.json:
        write_json(result, arguments.json)
    return 0


def _summarise(work: FixedWork, blocks: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of each name over all its blocks, and TRL's time over ours."""
    steps: dict[str, list[Step]] = {}
    for block in blocks:
        steps.setdefault(block["name"], []).extend(measured(block["steps"]))
    median = {name: medians(each) for name, each in steps.items()}
    ours = median[OURS]["total_seconds"]
    return {
        "work": work.describe(),
        "machine": machine_facts(),
        "push_bytes": checkpoint_manifest(work.policy_path, "bfloat16").num_bytes,
        "median": median,
        "new_tokens_per_second": {name: work.num_new_tokens / each["total_seconds"] for name, each in median.items()},
        "times_faster_than_trl": {name: each["total_seconds"] / ours for name, each in median.items() if name != OURS},
        "blocks": blocks,
    }


def _show(work: FixedWork, result: dict[str, Any], *, to_stderr: bool) -> None:
    ours = result["median"][OURS]
    total = ours["total_seconds"]
    rows = [[title, f"{ours[name]:.2f}", f"{ours[name] / total:.0%}"] for name, title in PHASES.items()]
    show("Median seconds of a PPO step", ["phase", "seconds", "share"], rows, to_stderr=to_stderr)
    facts = [
        ["new tokens per second of the step", f"{work.num_new_tokens / total:.0f}"],
        ["new tokens per second of generation", f"{work.num_new_tokens / ours['generate_seconds']:.0f}"],
        ["weights pushed, MB", f"{result['push_bytes'] / 1e6:.0f}"],
        ["sampling paused by the push, seconds", f"{ours['fleet_push_pause_seconds']:.2f}"],
    ]
    show("", ["", "median"], facts, to_stderr=to_stderr)
    if trl := {name: each for name, each in result["median"].items() if name != OURS}:
        show_phases(trl, to_stderr=to_stderr)
    if ratios := result["times_faster_than_trl"]:
        comparison = [[OURS, f"{total:.1f}", ""]]
        comparison += [
            [f"TRL {TRL_VERSION}, {mode}", f"{result['median'][mode]['total_seconds']:.1f}", f"{ratio:.1f}"]
            for mode, ratio in ratios.items()
        ]
        show("Side by side", ["", "seconds a step", "times ours"], comparison, to_stderr=to_stderr)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--steps", type=positive, default=5, help="of each run of ours; the first of 3 or more warms up"
    )
    parser.add_argument("--compare", action="store_true", help="measure TRL too, in between")
    parser.add_argument("--trl-modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--trl-steps", type=positive, default=3, help="of each run of TRL; the first warms up")
    parser.add_argument("--micro-batch", type=micro_batch_size, default=MICRO_BATCH, help="sequences of a pass in TRL")
    parser.add_argument("--venv", type=Path, default=default_environment(), help="TRL's environment")
    parser.add_argument("--folder", type=Path, default=Path("build/bench"), help="for models, logs and results")
    parser.add_argument("--json", metavar="FILE", help="also write JSON; - for standard output")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
