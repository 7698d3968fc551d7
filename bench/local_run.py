"""One run of the real trainer against real services on this machine, with the times of its steps."""

import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.fixed_work import FixedWork
from bench.measurements import Step, say
from rlhf_cli.local.services import ENVIRONMENT, LocalServices, ServiceEntry
from rlhf_cli.local.supervisor import STOP_GRACE_SECONDS, Supervisor, describe_exit, kill_group, spawn, tail, terminate

READY_TIMEOUT_SECONDS = 300.0
END_TIMEOUT_SECONDS = 60.0
POLL_SECONDS = 0.02

PHASES = {
    "generate_seconds": "generate; rewards and reference meanwhile",
    "scoring_wait_seconds": "wait for the last rewards and reference",
    "logprobs_seconds": "forward passes of the policy",
    "values_seconds": "forward passes of the critic",
    "update_seconds": "losses, backward passes, optimizers",
    "fleet_push_seconds": "digests and weight push",
    "other_seconds": "everything else",
    "total_seconds": "in all",
}
"""The parts of a step, one after the other, and their sum."""


class RunFailedError(Exception):
    """The trainer failed, or did other work than it was given."""


def measure_ours(work: FixedWork, folder: Path, *, steps: int) -> list[Step]:
    """Starts services and trainer, and returns the times of the trainer's steps, the first included.

    Raises: ServiceDiedError if a service does not come up; RunFailedError if the trainer fails, or a step's work is not
        exactly the fixed one.
    """
    run_dir = folder / "run"
    shutil.rmtree(run_dir, ignore_errors=True)
    with Supervisor(folder / "logs", say) as supervisor:
        services = LocalServices(supervisor, folder / "services.toml", environment=ENVIRONMENT)
        policy = services.start("policy", "policy", ["--model.path", work.policy_path])
        reward = services.start("reward", "reward", ["--scorer.kind", "model", "--scorer.path", work.scalar_path])
        reference = services.start("reference", "reference", ["--model.path", work.policy_path])
        services.wait_ready([policy, reward, reference], READY_TIMEOUT_SECONDS, lambda states: None)
        flags = _trainer_flags(work, run_dir, policy, reward, reference, steps)
        flags += services.server_flags(services.announce("trainer", "trainer"))
        command = [sys.executable, "-m", "services.trainer.server", *flags]
        rows = follow_trainer(command, folder / "logs" / "trainer.log", run_dir, steps)
    _require_fixed_work(work, rows)
    return [_phases(row) for row in rows]


def _trainer_flags(
    work: FixedWork, run_dir: Path, policy: ServiceEntry, reward: ServiceEntry, reference: ServiceEntry, steps: int
) -> list[str]:
    settings = {
        "run_dir": run_dir,
        "model.path": work.policy_path,
        "critic.path": work.scalar_path,
        "prompts.path": work.prompts_path,
        "services.policy_targets": json.dumps([policy.target]),
        "services.reward_target": reward.target,
        "services.reference_target": reference.target,
        "sampling.max_new_tokens": work.new_tokens,
        "sampling.temperature": work.temperature,
        "sampling.stop_ids": json.dumps([work.pad_id]),
        "training.steps": steps,
        "training.prompts_per_step": len(work.prompts),
        "training.epochs": 1,
        "training.minibatches": 1,
        "training.seed": work.seed,
        "checkpoint.every_steps": 0,
    }
    return [text for name, value in settings.items() for text in (f"--{name}", str(value))]


def follow_trainer(
    command: Sequence[str], log_path: Path, run_dir: Path, steps: int, environment: Mapping[str, str] = ENVIRONMENT
) -> list[dict[str, Any]]:
    """Runs a trainer to its end; returns the rows of its metrics.jsonl.

    Each has `seen_seconds`: the time since the row before it was seen here. Raises: RunFailedError if it fails.
    """
    metrics_path = run_dir / "metrics.jsonl"
    rows: list[dict[str, Any]] = []
    with log_path.open("wb") as log:
        trainer = spawn(command, environment, log.fileno())
    try:
        last_seen = time.monotonic()
        alive = True
        while alive and len(rows) < steps:
            time.sleep(POLL_SECONDS)
            alive = trainer.poll() is None
            for line in _complete_lines(metrics_path)[len(rows) :]:
                now = time.monotonic()
                rows.append({**json.loads(line), "seen_seconds": now - last_seen})
                last_seen = now
        # What the trainer still does, saving its final model, belongs to no step.
        with contextlib.suppress(subprocess.TimeoutExpired):
            trainer.wait(END_TIMEOUT_SECONDS)
    finally:
        terminate([trainer], STOP_GRACE_SECONDS)
        kill_group(trainer)
    if trainer.returncode != 0 or len(rows) < steps:
        raise RunFailedError(
            f"the trainer ended after {len(rows)} of {steps} steps ({describe_exit(trainer.returncode)}); "
            f"{log_path} ends with:\n{tail(log_path)}"
        )
    return rows


def _complete_lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def _require_fixed_work(work: FixedWork, rows: Sequence[dict[str, Any]]) -> None:
    expected = {
        "rollouts": len(work.prompts),
        "completion_tokens_mean": work.new_tokens,
        "tokens": work.num_prompt_tokens + work.num_new_tokens,
        "dropped_rollouts": 0,
    }
    for row in rows:
        for name, value in expected.items():
            if row[name] != value:
                raise RunFailedError(f"step {row['step']} has {name} {row[name]}, the fixed work has {value}")


def _phases(row: dict[str, Any]) -> Step:
    """A step's phases. Scores and reference are waited for together, so the longer wait counts."""
    phases = {
        "generate_seconds": row["generate_seconds"],
        "scoring_wait_seconds": max(row["score_wait_seconds"], row["reference_wait_seconds"]),
        "logprobs_seconds": row["logprobs_seconds"],
        "values_seconds": row["values_seconds"],
        "update_seconds": row["update_seconds"],
        "fleet_push_seconds": row["fleet_push_seconds"],
    }
    # The trainer's own clock leaves out what it does between steps; for the first, ours holds the start as well.
    total = row["step_seconds"] if row["step"] == 1 else max(row["step_seconds"], row["seen_seconds"])
    return {
        **phases,
        "other_seconds": total - sum(phases.values()),
        "total_seconds": total,
        "fleet_push_pause_seconds": row["fleet_push_pause_seconds"],
    }
