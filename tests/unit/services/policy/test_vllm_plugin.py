"""What vLLM's processes do of ours before they begin; that they do it in a real engine, the tests of real vLLM see."""

import os
import subprocess
import sys
import time
from pathlib import Path

SCRIPT = """
import multiprocessing, time
from services.policy.vllm import plugin

def child(pipe):
    plugin._die_with_parent()
    pipe.send(multiprocessing.current_process().pid)
    time.sleep(60)

ours, theirs = multiprocessing.Pipe()
multiprocessing.get_context("fork").Process(target=child, args=(theirs,)).start()
print(ours.recv(), flush=True)
time.sleep(60)
"""


def test_a_process_ends_with_a_parent_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)  # it lives
        parent.kill()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z":
        assert time.monotonic() < deadline, "the process has outlived its parent"
        time.sleep(0.02)
