"""An online run while it trains: what was loaded, the services it calls, and the files it writes."""

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ParamSpec, TypeVar

from rlhf.learning.ranks import Ranks
from rlhf.learning.update import Update
from rlhf.logs import get_logger
from rlhf.models.loading import tokenizer_digest
from services.trainer.config.online import OnlineRunConfig
from services.trainer.evaluation.in_run import InRunEvaluation
from services.trainer.fleet.peers import Peers
from services.trainer.fleet.policy_pushes import PolicyPushes
from services.trainer.loading import LoadedRun
from services.trainer.rollouts.collect import Collected
from services.trainer.rollouts.journal import Journal
from services.trainer.rollouts.lookahead import Lookahead, count_lags
from services.trainer.service.control import RunControl
from services.trainer.state.checkpoint import CheckpointFolder, write_directory
from services.trainer.telemetry.step import MetricsFile, TrainerMetrics, describe_step, step_metrics
from services.trainer.telemetry.terminal import RunProgress

P = ParamSpec("P")
T = TypeVar("T")

log = get_logger(__name__)

SAVE, GO, STOP = b"save", b"go", b"stop"
"""What the ranks tell one another between two steps. The main one alone says SAVE."""


class OnlineRun:
    """Everything that the loop touches."""

    def __init__(
        self,
        config: OnlineRunConfig,
        loaded: LoadedRun,
        *,
        control: RunControl,
        progress: RunProgress,
        metrics: TrainerMetrics,
        ranks: Ranks,
    ) -> None:
        """Opens channels, so it needs a running event loop. Args: where to show what happens."""
        self.config = config
        self.control = control
        self.updater = loaded.updater
        self.device = loaded.device
        digest = tokenizer_digest(loaded.tokenizer)
        self.peers = Peers(
            config.services,
            tokenizer_digest=digest,
            report=progress.say,
            caller=config.run_dir.name,
            ranks=ranks,
            metrics=metrics.fleet,
        )
        lag = config.training.max_policy_lag
        self._pushes = PolicyPushes(loaded.updater.policy, self.peers, ranks, in_background=lag > 0)
        self._ranks = ranks
        self._metric_names = tuple(step_metrics(config))
        self._loaded = loaded
        self._last_metrics: Mapping[str, float] = {}
        self._waited_seconds = 0.0
        """How long the step in progress waited for its rollouts."""
        self._is_computing = False
        self._progress = progress
        self._metrics = metrics
        self._metrics_file = MetricsFile(config.run_dir / "metrics.jsonl")
        self._checkpoints = CheckpointFolder(config.run_dir, config.checkpoint, ranks)
        self._journal = Journal(
            config.run_dir, ranks, settings=loaded.settings(config), max_policy_lag=lag, report=progress.say
        )
        self._lookahead = Lookahead(
            config, loaded.prompts, self.peers, self._pushes, self._journal, ranks, step=loaded.step
        )
        self._state = loaded.state(config, self._lookahead.prompts_state)
        if ranks.is_main:
            self._metrics_file.truncate_after(loaded.step)
            if rows := self._metrics_file.read():
                metrics.show(loaded.step, rows[-1])
        if not loaded.resumed:
            self._journal.clear()
        self._evaluation = InRunEvaluation(
            config, loaded, self.peers, gauges=metrics.evaluation, say=progress.say, ranks=ranks
        )
        control.step, control.policy_version = loaded.step, loaded.policy_version
        control.waiting_for = lambda: "" if self._is_computing else self.peers.waiting_for

    @property
    def step(self) -> int:
        """Steps completed."""
        return self._loaded.step

    @property
    def policy_version(self) -> int:
        """Version of the weights as they are, pushed or not."""
        return self._loaded.policy_version

    @property
    def checkpoint_due(self) -> bool:
        """Whether the step that just ended is one to be saved."""
        every = self.config.checkpoint.every_steps
        return every > 0 and (self.step % every == 0 or self.step == self.config.training.steps)

    async def goes_on(self) -> bool:
        """Does what was asked of the run meanwhile (save, pause); returns whether to begin another step.

        All ranks return the same. A signal to any of them stops all.
        """
        if self._ranks.is_main:

            async def save() -> Path:
                await self._tell(SAVE)
                return await self.save_checkpoint()

            on = await self.control.between_steps(save)
            told = await self._tell(GO if on else STOP)
        else:
            while (told := await self._tell(STOP if self.control.stopping else GO))[0] == SAVE:
                await self.save_checkpoint()
        return STOP not in told

    async def evaluate_if_due(self) -> None:
        """Evaluates the present policy on held-out prompts, if this is the step for it and nobody asked to stop.

        All ranks call it. Raises: as push() and collect().
        """
        if not self._evaluation.is_planned(self.step):
            return
        wanted = not self.control.stopping and not self._evaluation.is_done(self.step)
        if set(await self._tell(GO if wanted else STOP)) != {GO}:
            return
        await self._pushes.push_if_new(self.policy_version)
        await self._evaluation.evaluate(self.step, policy_version=self.policy_version)

    async def collect(self) -> Collected:
        """Returns the rollouts of the next step, all of them in the journal. Raises: as Lookahead.collect."""
        started = time.monotonic()
        collected = await self._lookahead.collect(self.step + 1, self.policy_version)
        self._waited_seconds = time.monotonic() - started
        return collected

    async def compute(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Returns what a function does that takes long, in a thread of its own.

        Meanwhile the run waits for no service, whatever its collections ahead wait for: a stop lets it end.
        """
        self._is_computing = True
        try:
            return await asyncio.to_thread(function, *args, **kwargs)
        finally:
            self._is_computing = False

    async def push(self) -> None:
        """Makes the policy services serve the present weights. All ranks call it. Raises: as PolicyPushes.push."""
        await self._pushes.push(self.policy_version)

    async def abandon(self) -> None:
        """Gives up what was begun for later steps; what has arrived is in the journal."""
        await self._lookahead.close()
        await self._pushes.close()

    def finish_step(self, update: Update) -> None:
        """Counts the step whose update is done: if the policy moved, its weights are a new version."""
        self._loaded.step += 1
        self._loaded.policy_version += int(update.policy_changed)
        self._state = self._loaded.state(self.config, self._lookahead.prompts_state)

    async def record(self, collected: Collected, update: Update, *, seconds: float) -> None:
        """Writes a finished step, which took so many seconds, down, shows it, and lets those who watch know."""
        lags = count_lags(collected.samples, self.policy_version - int(update.policy_changed))
        metrics = describe_step(
            collected,
            update.metrics,
            self._metric_names,
            policy_version=self.policy_version,
            lags=lags,
            pushed=self._pushes.report(),
            waited_seconds=self._waited_seconds,
            generator_idle_fraction=self.peers.dispatcher.idle_fraction_since(),
            seconds=seconds,
        )
        self._last_metrics = metrics
        if not self._ranks.is_main:
            return
        self._metrics_file.append(self.step, metrics)
        self._metrics.observe(self.step, metrics, collected.dropped, lags)
        self._progress.show(self.step, metrics)
        await self.control.finish_step(self.step, self.policy_version, metrics)

    async def save_checkpoint(self) -> Path:
        """Writes a checkpoint of the last finished step; returns its directory. Raises: RunError if it cannot."""
        started = time.monotonic()
        path = await self.compute(
            self._checkpoints.save, self.step, self._state, self._loaded.write_models, self._last_metrics
        )
        # A run goes on from the newest of its last checkpoints that is whole; those kept for longer need no journal.
        oldest = sorted(self._checkpoints.path.glob("step-*"))[-self.config.checkpoint.keep_last :][0]
        self._journal.prune(int(oldest.name.removeprefix("step-")) + 1)
        log.info("checkpoint", step=self.step, path=str(path), seconds=round(time.monotonic() - started, 1))
        return path

    async def save_final(self) -> Path:
        """Writes RUN_DIR/final, the policy as a Hugging Face checkpoint; returns its directory."""
        path = self.config.run_dir / "final"

        def write(folder: Path) -> None:
            self.updater.policy.save_weights(folder, self._loaded.tokenizer)

        await self.compute(write_directory, path, write, self._ranks)
        return path

    async def _tell(self, message: bytes) -> list[bytes]:
        """Returns what every rank says, the main one first."""
        return await asyncio.to_thread(self._ranks.gather_bytes, message)
