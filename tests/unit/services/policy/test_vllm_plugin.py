"""What vLLM's processes do of ours before they begin; that they do it in a real engine, the tests of real vLLM see."""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from services.policy.vllm import plugin

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


@pytest.mark.parametrize("is_ours", [True, False])
def test_amx_is_requested_in_the_processes_of_our_engine_alone(is_ours: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    factory = SimpleNamespace(_registry={plugin.BACKEND: None})
    weight_transfer = ModuleType("vllm.distributed.weight_transfer")
    weight_transfer.WeightTransferEngineFactory = factory
    for name in ("vllm", "vllm.distributed"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, weight_transfer.__name__, weight_transfer)
    calls: list[str] = []
    monkeypatch.setattr(plugin, "_die_with_parent", lambda: calls.append("parent"))
    monkeypatch.setattr(plugin, "_keep_weights_writable", lambda: calls.append("weights"))
    monkeypatch.setattr(torch.cpu, "_init_amx", lambda: calls.append("amx"))
    monkeypatch.setenv(plugin.ENGINE_VARIABLE, "1" if is_ours else "")
    plugin.register()
    assert calls == (["parent", "amx", "weights"] if is_ours else [])
