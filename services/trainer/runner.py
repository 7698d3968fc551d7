"""A run in its process: the TrainerService beside it, what signals do to both, and how the run may end."""

import asyncio
import contextlib
import fcntl
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry, ProcessCollector
from rich.console import Console

from rlhf_services.common.errors import ConfigError, ServiceError
from rlhf_services.common.logs import get_logger
from rlhf_services.common.serving import ServiceServer
from rlhf_services.trainer.checkpoint import CheckpointFolder
from rlhf_services.trainer.control import RunControl
from rlhf_services.trainer.errors import RunError
from rlhf_services.trainer.loading import load_run
from rlhf_services.trainer.loop import train
from rlhf_services.trainer.metrics import TrainerMetrics
from rlhf_services.trainer.online_config import PpoRunConfig
from rlhf_services.trainer.progress import Progress
from rlhf_services.trainer.run import PpoRun
from rlhf_services.trainer.servicer import FULL_NAME, TrainerServicer

log = get_logger(__name__)

STOP_POLL_SECONDS = 0.5


def run_in_process(config: PpoRunConfig, *, resume: bool, console: Console) -> int:
    """Runs PPO to its end, with the TrainerService beside it; returns the exit code. Raises: ConfigError."""
    with _locked(config.run_dir):
        return asyncio.run(_serve_run(config, _find_checkpoint(config, resume=resume), console))


class _NoBackend:
    """The run is the trainer's backend, and it reports its own state: the service answers from the first moment."""

    async def load(self) -> None:
        """Has nothing to load."""

    async def check(self) -> None:
        """Is always well."""

    async def close(self) -> None:
        """Has nothing to free."""


async def _serve_run(config: PpoRunConfig, checkpoint: Path | None, console: Console) -> int:
    control = RunControl(config.run_dir.name, "ppo", config.training.steps)
    # A registry of its own, so that one process can run one run after another.
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    register = TrainerServicer(control).register
    server = ServiceServer("trainer", FULL_NAME, config.server, register, _NoBackend(), registry=registry)
    await server.start()
    try:
        with Progress(console, title=f"PPO run {config.run_dir.name}", num_steps=config.training.steps) as progress:
            progress.say(f"trainer service on port {server.port}, metrics on port {server.metrics_port}")
            if checkpoint is not None:
                progress.say(f"resuming from {checkpoint}")
            _stop_on_signals(control, progress)
            return await _run_to_end(config, checkpoint, control, progress, TrainerMetrics(registry))
    finally:
        await server.stop()


async def _run_to_end(
    config: PpoRunConfig, checkpoint: Path | None, control: RunControl, progress: Progress, metrics: TrainerMetrics
) -> int:
    """Runs, and makes how it ended known to the control and the console. Returns the exit code."""
    failure = "interrupted"
    try:
        path = await _run(config, checkpoint, control, progress, metrics)
        failure = ""
        progress.say(f"finished: {path}" if path else f"stopped after step {control.step}; --resume goes on")
        return 0
    except (ServiceError, RunError) as error:
        failure = f"step {control.step + 1}: {error}"
        log.error("run failed", step=control.step + 1, error=str(error))
        progress.say(f"failed at {failure}")
        return 1
    except ConfigError as error:
        failure = str(error)
        raise
    finally:
        await control.end(failure)


async def _run(
    config: PpoRunConfig, checkpoint: Path | None, control: RunControl, progress: Progress, metrics: TrainerMetrics
) -> Path | None:
    """Trains to the end; returns the directory of the final policy, or None if the run was stopped before."""

    loaded = await asyncio.to_thread(load_run, config, checkpoint)
    for note in loaded.notes:
        progress.say(note)
    run = PpoRun(config, loaded, control=control, progress=progress, metrics=metrics)
    async with run.peers:
        try:
            await _train_unless_stopped(run)
        except ServiceError:
            # A service failed, not the training: what was learned since the last checkpoint is worth keeping.
            await _save_progress(run)
            raise
        if run.step < config.training.steps:
            await _save_progress(run)
            return None
        return await run.save_final()


async def _train_unless_stopped(run: PpoRun) -> None:
    """Trains; a run that is asked to stop while it waits for a service stops at once, else after its step."""
    training = asyncio.create_task(train(run))
    watching = asyncio.create_task(_cancel_when_stopped(run.control, training))
    try:
        await training
    except asyncio.CancelledError:
        if not run.control.stopping:
            raise
    finally:
        watching.cancel()
        training.cancel()


async def _cancel_when_stopped(control: RunControl, training: asyncio.Task[None]) -> None:
    while True:
        if control.stopping and control.state == "waiting":
            training.cancel()
        await asyncio.sleep(STOP_POLL_SECONDS)


async def _save_progress(run: PpoRun) -> None:
    if run.step > 0:
        await run.save_checkpoint()


def _stop_on_signals(control: RunControl, progress: Progress) -> None:
    """Makes the first SIGTERM or SIGINT stop the run after its step, and a second one end the process at once."""
    if threading.current_thread() is not threading.main_thread():
        return
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    tasks: set[asyncio.Task[None]] = set()

    def stop() -> None:
        for number in numbers:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        progress.say("stopping after this step; once more ends at once, with the last checkpoint kept")
        tasks.add(asyncio.create_task(control.stop()))

    for number in numbers:
        loop.add_signal_handler(number, stop)


def _find_checkpoint(config: PpoRunConfig, *, resume: bool) -> Path | None:
    """Returns the checkpoint to go on from, or None. Raises: ConfigError if there is one and it is not wanted."""
    newest = CheckpointFolder(config.run_dir, keep_last=config.checkpoint.keep_last).newest()
    if newest is not None and not resume:
        raise ConfigError(
            f"run_dir is '{config.run_dir}': it holds a run already, up to {newest.name}; go on with --resume, or "
            "choose another directory"
        )
    return newest


@contextlib.contextmanager
def _locked(run_dir: Path) -> Iterator[None]:
    """Keeps a second trainer out of the run's directory. Raises: ConfigError if there is one, or no directory."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        lock = (run_dir / ".lock").open("w")
    except OSError as error:
        raise ConfigError(f"run_dir is '{run_dir}': {error.strerror}; choose a directory that can be written") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"run_dir is '{run_dir}': another trainer is running in it; stop that one first"
            ) from None
        yield
