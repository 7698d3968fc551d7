"""Ctrl-C on the real `rlhf demo`: every process of it is gone, children of children included."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

MARK = "RLHF_TEST_DEMO_OF"


def processes_of(mark: str) -> list[int]:
    """Returns the living processes whose environment has the mark: it is inherited by all descendants."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes()
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:  # it has ended meanwhile
            continue
        if f"{MARK}={mark}".encode() in environment.split(b"\0") and state != "Z":
            found.append(int(folder.name))
    return found


def eventually(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


@pytest.mark.parametrize(
    ("number", "exit_code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.exhaustive)],
)
def test_an_interrupted_demo_leaves_no_process(
    tmp_path: Path, tiny_model_path: Path, number: signal.Signals, exit_code: int
) -> None:
    mark = str(tmp_path)
    command = [sys.executable, "-m", "rlhf_cli.main", "demo", "--engine", "transformers", "--quick"]
    command += ["--model", str(tiny_model_path), "--run-dir", str(tmp_path / "run")]
    with subprocess.Popen(command, env={**os.environ, MARK: mark}, stdout=subprocess.DEVNULL) as demo:
        try:
            assert eventually(lambda: len(processes_of(mark)) >= 4, 60.0)  # itself and three services
            demo.send_signal(number)
            assert demo.wait(30) == exit_code
            assert processes_of(mark) == []
        finally:
            for pid in processes_of(mark):
                os.kill(pid, signal.SIGKILL)
