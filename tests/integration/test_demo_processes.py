"""The demo's supervisor, with small fake services: nothing survives it, and what dies comes back."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rlhf_cli.local.supervisor import ServiceDiedError, ServiceSpec, Supervisor, free_ports, is_serving

FAKE_SERVICE = """
import os, signal, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
port, pid_file, flags = sys.argv[1], sys.argv[2], sys.argv[3:]
if "stubborn" in flags:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
pids = [os.getpid()]
if "engine" in flags:
    pids.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid)
with open(pid_file, "a") as file:
    file.write("".join(f"{pid}\\n" for pid in pids))
if "broken" in flags:
    sys.exit("no such model")
server = grpc.server(ThreadPoolExecutor(2))
servicer = health.HealthServicer()
health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
states = health_pb2.HealthCheckResponse
servicer.set("", states.NOT_SERVING if "slow" in flags else states.SERVING)
server.add_insecure_port(f"127.0.0.1:{port}")
server.start()
time.sleep(60)
"""

# A demo in small: two services, then it waits for ever, or runs a command in the foreground, until it is interrupted.
DRIVER = """
import signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a test run under nohup hands down a SIGHUP that is ignored
from pathlib import Path
from tests.integration.test_demo_processes import fake
from rlhf_cli.local.supervisor import interrupt_on_signals
from rlhf_cli.local.supervisor import Supervisor
folder = Path(sys.argv[1])
with interrupt_on_signals(), Supervisor(folder / "logs", print, stop_grace_seconds=1.0) as supervisor:
    supervisor.start(fake("policy", folder, "engine"))
    supervisor.start(fake("reward", folder, "stubborn", *sys.argv[2:]))
    supervisor.wait_ready(["policy", "reward"], 30.0, lambda states: None)
    print("ready", flush=True)
    supervisor.run([sys.executable, "-c", "import time; time.sleep(60)"])
"""


def fake(name: str, folder: Path, *flags: str) -> ServiceSpec:
    (port,) = free_ports(1)
    command = [sys.executable, "-c", FAKE_SERVICE, str(port), str(folder / f"{name}.pids"), *flags]
    return ServiceSpec(name=name, command=command, port=port)


def pids(folder: Path) -> list[int]:
    return [int(line) for path in folder.glob("*.pids") for line in path.read_text().splitlines()]


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def eventually(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


@contextmanager
def driver(folder: Path, *flags: str) -> Iterator[subprocess.Popen[str]]:
    environment = dict(os.environ)
    command = [sys.executable, "-c", DRIVER, str(folder), *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pid in pids(folder):
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_every_service_and_their_children_even_one_that_ignores_sigterm(
    tmp_path: Path, number: signal.Signals
) -> None:
    with driver(tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert len(pids(tmp_path)) == 3
        process.send_signal(number)
        assert process.wait(20) != 0
        assert not [pid for pid in pids(tmp_path) if is_alive(pid)]


def test_kill_9_of_the_demo_ends_its_services(tmp_path: Path) -> None:
    with driver(tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.kill()
        services = [int((tmp_path / f"{name}.pids").read_text().splitlines()[0]) for name in ("policy", "reward")]
        assert eventually(lambda: not any(is_alive(pid) for pid in services), 5.0)


def test_ctrl_c_while_services_are_starting_ends_them_too(tmp_path: Path) -> None:
    with driver(tmp_path, "slow") as process:
        assert eventually(lambda: len(pids(tmp_path)) == 3)
        process.send_signal(signal.SIGINT)
        assert process.wait(20) != 0
        assert not [pid for pid in pids(tmp_path) if is_alive(pid)]


def test_a_service_that_dies_while_starting_is_an_error_with_the_end_of_its_log(tmp_path: Path) -> None:
    with Supervisor(tmp_path / "logs", print) as supervisor:
        supervisor.start(fake("reward", tmp_path, "broken"))
        with pytest.raises(ServiceDiedError, match=r"(?s)the reward service ended with exit code 1 .*no such model"):
            supervisor.wait_ready(["reward"], 20.0, lambda states: None)


def test_a_service_that_is_not_ready_in_time_is_an_error(tmp_path: Path) -> None:
    with Supervisor(tmp_path / "logs", print) as supervisor:
        supervisor.start(fake("policy", tmp_path, "slow"))
        with pytest.raises(ServiceDiedError, match="the policy service was not ready within 1 s"):
            supervisor.wait_ready(["policy"], 1.0, lambda states: None)


def test_a_service_killed_later_is_started_again_on_its_port_and_the_terminal_is_told(tmp_path: Path) -> None:
    messages: list[str] = []
    with Supervisor(tmp_path / "logs", messages.append) as supervisor:
        spec = fake("reference", tmp_path)
        supervisor.start(spec)
        supervisor.wait_ready(["reference"], 20.0, lambda states: None)
        os.kill(pids(tmp_path)[0], signal.SIGKILL)
        assert eventually(lambda: len(pids(tmp_path)) == 2 and is_serving(spec.port))
    assert messages[0].startswith("the reference service died (killed by SIGKILL); starting it again in 1 s; log: ")
    assert messages[1].startswith("the reference service is starting again (process ")
    assert not [pid for pid in pids(tmp_path) if is_alive(pid)]


def test_a_command_in_the_foreground_gives_its_exit_code(tmp_path: Path) -> None:
    with Supervisor(tmp_path / "logs", print) as supervisor:
        assert supervisor.run([sys.executable, "-c", "raise SystemExit(7)"]) == 7
