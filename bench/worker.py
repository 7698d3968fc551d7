"""A part of a benchmark in a fresh process of its own, so that no part finds what another left behind."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlhf_cli.local.supervisor import describe_exit, kill_group, spawn, tail

ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}


class WorkerError(Exception):
    """A process failed; the message has the end of its log."""


def run_worker(name: str, command: Sequence[str], result_path: Path, log_path: Path) -> dict[str, Any]:
    """Returns the JSON that a command writes to result_path, given as its --output.

    Args: name: of the process, for errors.
    Raises: WorkerError if it ends otherwise than well.
    """
    result_path.unlink(missing_ok=True)
    with log_path.open("wb") as log:
        worker = spawn([*command, "--output", str(result_path)], ENVIRONMENT, log.fileno())
    try:
        exit_code = worker.wait()
    finally:
        kill_group(worker)
    if exit_code != 0:
        raise WorkerError(f"{name} ended ({describe_exit(exit_code)}); {log_path} ends with:\n{tail(log_path)}")
    result: dict[str, Any] = json.loads(result_path.read_text())
    return result
