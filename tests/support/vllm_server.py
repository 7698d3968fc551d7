"""The policy service with real vLLM, as a process of its own."""

import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from tests.support.ports import free_port

START_SECONDS = 240


class Server:
    """`rlhf-policy` as a process of its own."""

    def __init__(self, model: Path, log: Path, *flags: str) -> None:
        self.port, self.metrics_port = free_port(), free_port()
        self.target = f"127.0.0.1:{self.port}"
        self.log = log
        command = [sys.executable, "-m", "services.policy.server", "--model.path", str(model)]
        command += ["--model.dtype", "float32", "--model.max_sequence_tokens", "512", "--vllm.kv_cache_gib", "0.25"]
        command += ["--server.host", "127.0.0.1", "--server.port", str(self.port)]
        command += ["--server.metrics_port", str(self.metrics_port), *flags]
        with log.open("w") as file:
            self.process = subprocess.Popen(command, stderr=file, stdout=file)

    def wait_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while '"event": "serving"' not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)

    def engine_pid(self) -> int:
        """The process of vLLM's engine core."""
        children = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        pids = [int(pid) for file in children for pid in file.read_text().split()]
        return next(pid for pid in pids if "EngineCore" in Path(f"/proc/{pid}/cmdline").read_text())

    def metric(self, name: str) -> float:
        """The sum of a family's samples."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith((name + "{", name + " ")))

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)
