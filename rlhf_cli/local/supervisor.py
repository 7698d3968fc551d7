"""A local supervisor: starts services as processes, waits for their health, restarts one that dies, stops them all."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import NoReturn, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from rlhf.client.tls import open_blocking_channel
from rlhf_cli.errors import LocalServiceError

POLL_SECONDS = 0.2
FIRST_BACKOFF_SECONDS = 1.0
MAX_BACKOFF_SECONDS = 30.0
STABLE_SECONDS = 60.0
STOP_GRACE_SECONDS = 8.0
LOG_TAIL_LINES = 15
# Runs in the child before the command itself, which inherits the request across exec. Popen's preexec_fn could make it
# too, but executes Python between fork and exec, which can deadlock where there are threads.
_LAUNCHER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)        # PR_SET_PDEATHSIG
if os.getppid() != int(sys.argv[1]): sys.exit(1)  # the parent died before the request took effect
os.execvp(sys.argv[2], sys.argv[2:])
"""


class ServiceDiedError(LocalServiceError):
    """A service ended while it was starting, or was not ready in time; the message has the end of its log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSpec:
    """A service to run."""

    name: str
    """Short name, for messages and the log's file name."""
    command: Sequence[str]
    """Program and arguments."""
    port: int
    """Local gRPC port on which it answers the health service."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables added to those of this process."""


@dataclass(slots=True, kw_only=True)
class _Running:
    """A service and the process that runs it now."""

    spec: ServiceSpec
    process: subprocess.Popen[bytes]
    started_at: float
    ready_after_seconds: float | None = None
    backoff_seconds: float = FIRST_BACKOFF_SECONDS
    restart_at: float | None = None


class Supervisor:
    """Runs services until it is left: `with Supervisor(log_dir, report) as supervisor: ...`."""

    def __init__(
        self, log_dir: Path, report: Callable[[str], None], *, stop_grace_seconds: float = STOP_GRACE_SECONDS
    ) -> None:
        """Runs nothing yet.

        Args:
            log_dir: logs go to log_dir/<name>.log.
            report: told, from another thread, when a service dies and when it returns.
            stop_grace_seconds: how long a process has between SIGTERM and SIGKILL.
        """
        self._log_dir = log_dir
        self._report = report
        self._stop_grace_seconds = stop_grace_seconds
        self._services: dict[str, _Running] = {}
        self._foreground: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._stopping = False
        self._stopped = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="supervisor", daemon=True)

    def __enter__(self) -> Self:
        self._log_dir.mkdir(parents=True, exist_ok=True)
        self._watcher.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def log_path(self, name: str) -> Path:
        """Returns where the service of that name logs."""
        return self._log_dir / f"{name}.log"

    def start(self, spec: ServiceSpec) -> None:
        """Starts a service; returns before it is ready."""
        with self._lock:
            self._services[spec.name] = self._spawn(spec)

    def end(self, *names: str) -> None:
        """Stops services, and starts them no more; returns when they and their descendants are gone."""
        with self._lock:
            processes = [self._services.pop(name).process for name in names]
        try:
            terminate(processes, self._stop_grace_seconds)
        finally:
            for process in processes:
                kill_group(process)

    def wait_ready(
        self, names: Sequence[str], timeout_seconds: float, on_wait: Callable[[Mapping[str, float | None]], None]
    ) -> None:
        """Returns when all of the services answer SERVING.

        Args:
            names: of services that were started.
            timeout_seconds: for all of them together.
            on_wait: called about five times a second with the seconds each took to be ready, None while it is not.
        Raises: ServiceDiedError if one ends or is not ready in time.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            for name in names:
                self._check_starting(self._services[name], timeout_seconds, deadline)
            states = {name: self._services[name].ready_after_seconds for name in names}
            on_wait(states)
            if all(state is not None for state in states.values()):
                return
            time.sleep(POLL_SECONDS)

    def run(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
        """Runs a command to its end with this terminal as its output; returns its exit code."""
        self._foreground = spawn(command, environment or {}, None)
        try:
            return self._foreground.wait()
        finally:
            if self._foreground.poll() is not None:
                self._foreground = None

    def stop(self) -> None:
        """Stops everything: first the command in the foreground, then all services. A second Ctrl-C hurries it."""
        with self._lock:
            self._stopping = True
            services = [running.process for running in self._services.values()]
        try:
            if self._foreground is not None:
                terminate([self._foreground], self._stop_grace_seconds)
            terminate(services, self._stop_grace_seconds)
        finally:
            for process in [*services, *([self._foreground] if self._foreground else [])]:
                kill_group(process)
            self._stopped.set()
            self._watcher.join()

    def _spawn(self, spec: ServiceSpec) -> _Running:
        with self.log_path(spec.name).open("ab") as log:
            process = spawn(spec.command, spec.environment, log.fileno())
        return _Running(spec=spec, process=process, started_at=time.monotonic())

    def _check_starting(self, running: _Running, timeout_seconds: float, deadline: float) -> None:
        """Notes that a service has become ready. Raises: ServiceDiedError if it ended or is late."""
        if running.ready_after_seconds is not None:
            return
        name = running.spec.name
        exit_code = running.process.poll()
        fault = f"ended with exit code {exit_code} while starting"
        if exit_code is None:
            if is_serving(running.spec.port):
                running.ready_after_seconds = time.monotonic() - running.started_at
                return
            if time.monotonic() <= deadline:
                return
            fault = f"was not ready within {timeout_seconds:.0f} s"
        log = self.log_path(name)
        raise ServiceDiedError(f"the {name} service {fault}; {log} ends with:\n{tail(log)}")

    def _watch(self) -> None:
        """Restarts what dies. Ends only after stop() is through: the kernel takes the end of the thread that started a
        process for the death of its parent."""
        while not self._stopped.wait(POLL_SECONDS):
            with self._lock:
                if not self._stopping:
                    for name, running in list(self._services.items()):
                        self._services[name] = self._restarted_if_dead(running)

    def _restarted_if_dead(self, running: _Running) -> _Running:
        """Returns the service as it runs after this look at it: afresh once the backoff after a death is over."""
        exit_code = running.process.poll()
        if exit_code is None or running.ready_after_seconds is None:  # alive, or wait_ready() reports its death
            return running
        now = time.monotonic()
        name = running.spec.name
        if running.restart_at is None:
            kill_group(running.process)  # an engine process may have outlived it
            if now - running.started_at > STABLE_SECONDS:
                running.backoff_seconds = FIRST_BACKOFF_SECONDS
            running.restart_at = now + running.backoff_seconds
            self._report(
                f"the {name} service died ({describe_exit(exit_code)}); "
                f"starting it again in {running.backoff_seconds:.0f} s; log: {self.log_path(name)}"
            )
        if now < running.restart_at:
            return running
        fresh = self._spawn(running.spec)
        fresh.ready_after_seconds = running.ready_after_seconds
        fresh.backoff_seconds = min(2 * running.backoff_seconds, MAX_BACKOFF_SECONDS)
        self._report(f"the {name} service is starting again (process {fresh.process.pid})")
        return fresh


def free_ports(count: int) -> list[int]:
    """Returns distinct local TCP ports that nothing listens on at this moment."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def is_serving(port: int) -> bool:
    """Returns whether the local service on that port answers SERVING to a health check within a second."""
    with open_blocking_channel(f"127.0.0.1:{port}") as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=1.0)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def tail(path: Path) -> str:
    """Returns the last lines of a log."""
    return "\n".join(path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])


def spawn(command: Sequence[str], environment: Mapping[str, str], output: int | None) -> subprocess.Popen[bytes]:
    """Returns the command as a process in a session of its own, so that Ctrl-C reaches it by the supervisor alone."""
    return subprocess.Popen(
        [sys.executable, "-c", _LAUNCHER, str(os.getpid()), *command],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )


def terminate(processes: Sequence[subprocess.Popen[bytes]], grace_seconds: float) -> None:
    """Asks processes to end; returns when they have or when the grace is over."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + grace_seconds
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(deadline - time.monotonic(), 0.0))


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kills what is left of a process and its descendants."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def describe_exit(exit_code: int) -> str:
    """Returns how a process ended, in words."""
    return f"killed by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exit code {exit_code}"


@contextlib.contextmanager
def interrupt_on_signals() -> Iterator[None]:
    """Lets SIGINT, SIGTERM and SIGHUP end this process through every `finally` and `with`.

    Raises: in the main thread, KeyboardInterrupt at SIGINT (also where it was ignored, as shells do for background
        jobs), SystemExit with 128 + the signal's number at the others.
    """

    def leave(signal_number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + signal_number)

    previous = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGHUP)}
    previous[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
