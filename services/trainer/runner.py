"""A run in its process: the TrainerService beside it, what signals do to both, and how the run may end."""

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, ProcessCollector
from rich.console import Console

from rlhf.client.tracing import configure_tracing
from rlhf.errors import ConfigError, RunError, ServiceError
from rlhf.learning.ranks import Ranks, join_ranks, take_own_gpu
from rlhf.logs import get_logger
from rlhf.serving.directory import TRAINER
from rlhf.serving.server import ServiceServer
from services.trainer.config.online import OnlineRunConfig
from services.trainer.loading import load_run
from services.trainer.loop import train
from services.trainer.run import OnlineRun
from services.trainer.service.control import RunControl
from services.trainer.service.servicer import TrainerServicer
from services.trainer.service.signals import RunSignals
from services.trainer.state.checkpoint import CheckpointFolder
from services.trainer.state.run_dir import locked, require_wanted
from services.trainer.telemetry.gauges import register_kl_budget, register_run_gauges
from services.trainer.telemetry.step import TrainerMetrics, step_metrics
from services.trainer.telemetry.terminal import RunProgress

log = get_logger(__name__)

STOP_POLL_SECONDS = 0.5


def run_in_process(config: OnlineRunConfig, *, resume: bool, console: Console) -> int:
    """Runs to the end, with the TrainerService beside the main rank; returns the exit code. Raises: ConfigError.

    Under torchrun every rank calls it. The main one alone holds the run's directory, talks to the console and to those
    who watch; a rank that fails ends the others with it.
    """
    ranks = join_ranks()
    with contextlib.ExitStack() as stack:
        if ranks.is_main:
            stack.enter_context(locked(config.run_dir))
        checkpoint = CheckpointFolder(config.run_dir, config.checkpoint, ranks).newest()
        require_wanted(config.run_dir, checkpoint, resume=resume)
        start = Start(config, checkpoint, resume, ranks)
        return asyncio.run(_serve_run(start, console) if ranks.is_main else _follow(start))


@dataclass(frozen=True, slots=True)
class Start:
    """How a run begins."""

    config: OnlineRunConfig
    checkpoint: Path | None
    """To go on from."""
    resume: bool
    ranks: Ranks


class _NoBackend:
    """The run is the trainer's backend, and it reports its own state: the service answers from the first moment."""

    async def load(self) -> None:
        """Has nothing to load."""

    async def check(self) -> None:
        """Is always well."""

    async def close(self) -> None:
        """Has nothing to free."""


async def _serve_run(start: Start, console: Console) -> int:
    config = start.config
    control = RunControl(config.run_dir.name, config.algorithm, config.training.steps)
    # A registry of its own, so that one process can run one run after another.
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    register_run_gauges(control, config.run_dir, registry)
    register_kl_budget(config.watch.kl_budget, registry)
    configure_tracing(TRAINER.name)
    register = TrainerServicer(control).register
    server = ServiceServer(TRAINER, config.server, register, _NoBackend(), registry=registry)
    await server.start()
    title = f"{config.algorithm} run {config.run_dir.name}"
    try:
        with RunProgress(console, title=title, num_steps=config.training.steps) as progress:
            progress.say(f"trainer service on port {server.port}, metrics on port {server.metrics_port}")
            if start.checkpoint is not None:
                progress.say(f"resuming from {start.checkpoint}")
            signals = RunSignals(control, progress.say)
            metrics = TrainerMetrics(step_metrics(config), registry)
            exit_code = await _run_to_end(start, control, progress, metrics, signals)
        await signals.linger(config.server.linger_seconds)
        return exit_code
    finally:
        await server.stop()


async def _follow(start: Start) -> int:
    """Runs as one of the ranks that do not talk: the main one says what is to be done, and why a run failed."""
    config = start.config
    control = RunControl(config.run_dir.name, config.algorithm, config.training.steps)
    progress = RunProgress(Console(quiet=True), title="", num_steps=config.training.steps)
    signals = RunSignals(control, progress.say, hurries=False)
    try:
        return await _run_to_end(start, control, progress, TrainerMetrics({}, CollectorRegistry()), signals)
    except RuntimeError as error:  # what torch raises when another rank is gone
        log.error("rank failed", rank=start.ranks.rank, error=str(error))
        return 1


async def _run_to_end(
    start: Start, control: RunControl, progress: RunProgress, metrics: TrainerMetrics, signals: RunSignals
) -> int:
    """Runs, and makes how it ended known to the control and the console. Returns the exit code."""
    failure = "interrupted"
    try:
        path = await _run(start, control, progress, metrics)
        failure = ""
        progress.say(f"finished: {path}" if path else f"stopped after step {control.step}; --resume goes on")
        return 0 if path else await _exit_code_of_stop(start.ranks, signals)
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


async def _run(start: Start, control: RunControl, progress: RunProgress, metrics: TrainerMetrics) -> Path | None:
    """Trains to the end; returns the directory of the final policy, or None if the run was stopped before."""
    config, ranks = start.config, start.ranks
    if ranks.world_size > 1:
        # "cuda" means a GPU per thread, and torch works in threads of this pool.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(initializer=take_own_gpu))
    loaded = await asyncio.to_thread(load_run, config, start.checkpoint, resume=start.resume, ranks=ranks)
    for note in loaded.notes:
        progress.say(note)
    run = OnlineRun(config, loaded, control=control, progress=progress, metrics=metrics, ranks=ranks)
    async with run.peers:
        try:
            await _train_unless_stopped(run, ranks)
        except ServiceError:
            # A service failed, not the training: what was learned since the last checkpoint is worth keeping.
            await _save_progress(run)
            raise
        if run.step < config.training.steps:
            await _save_progress(run)
            return None
        return await run.save_final()


async def _train_unless_stopped(run: OnlineRun, ranks: Ranks) -> None:
    """Trains; a run that is asked to stop while it waits for a service stops at once, else after its step.

    One of many ranks cannot leave alone: they stop after their step, or when the service's time is up.
    """
    training = asyncio.create_task(train(run))
    watching = asyncio.create_task(_cancel_when_stopped(run.control, training, alone=ranks.world_size == 1))
    try:
        await training
    except asyncio.CancelledError:
        if not run.control.stopping:
            raise
    finally:
        watching.cancel()
        training.cancel()
        await run.abandon()


async def _cancel_when_stopped(control: RunControl, training: asyncio.Task[None], *, alone: bool) -> None:
    while True:
        if alone and control.stopping and control.state == "waiting":
            training.cancel()
        await asyncio.sleep(STOP_POLL_SECONDS)


async def _exit_code_of_stop(ranks: Ranks, signals: RunSignals) -> int:
    """Returns what every rank of a stopped run exits with: none may look finished while another is started again."""
    told = await asyncio.to_thread(ranks.gather_bytes, str(signals.exit_code).encode())
    return max(map(int, told))


async def _save_progress(run: OnlineRun) -> None:
    if run.step > 0:
        await run.save_checkpoint()
