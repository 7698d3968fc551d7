"""Replicas of the real policy service, each a process of its own, that start within a second and can be killed."""

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from rlhf.serving.directory import POLICY
from rlhf.serving.server import run_service
from services.policy.config import ModelConfig, PolicyConfig, PolicyServerConfig, TransformersConfig
from services.policy.engine import Completion, Engine, EngineInfo, SampleParams
from services.policy.server import PolicyBackend, make_engine
from tests.support.forked import fork
from tests.support.ports import free_port


class SlowEngine:
    """Implements engine.Engine around another one: it takes its time, and leaves a file where its swaps begin."""

    def __init__(self, engine: Engine, *, generate_seconds: float, swap_seconds: float, swap_begun: Path) -> None:
        self._engine = engine
        self._generate_seconds = generate_seconds
        self._swap_seconds = swap_seconds
        self._swap_begun = swap_begun

    @property
    def info(self) -> EngineInfo:
        return self._engine.info

    async def start(self) -> None:
        await self._engine.start()

    async def generate(self, prompt_ids: list[int], params: SampleParams, request_id: str) -> Completion:
        completion = await self._engine.generate(prompt_ids, params, request_id)
        # Those of even seeds come at once, so that groups are half there when a replica is lost.
        if params.seed is None or params.seed % 2:
            await asyncio.sleep(self._generate_seconds)
        return completion

    async def update_weights(self, staged: Any) -> float:
        self._swap_begun.touch()
        await asyncio.sleep(self._swap_seconds)
        return await self._engine.update_weights(staged)

    async def check(self) -> None:
        await self._engine.check()

    async def close(self) -> None:
        await self._engine.close()


@dataclass
class PolicyProcess:
    """One replica."""

    model: Path
    port: int
    folder: Path
    generate_seconds: float = 0.0
    swap_seconds: float = 0.0
    process: ForkServerProcess = field(init=False)

    def __post_init__(self) -> None:
        self.start()

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def swap_begun(self) -> Path:
        """Exists once a swap of weights has begun."""
        return self.folder / f"swap-{self.port}"

    def start(self) -> None:
        """Starts it, anew if it was killed: at the same place, with the weights it had at first."""
        slow = (self.generate_seconds, self.swap_seconds, self.swap_begun)
        self.process = fork(_serve, self.model, self.port, *slow, output=self.folder / f"policy-{self.port}.log")

    def signal(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        """Ends it at once, also if it is stopped."""
        self.process.kill()
        self.process.join()


@contextmanager
def policy_processes() -> Iterator[list[PolicyProcess]]:
    """Yields a list; the replicas in it are killed when the block ends."""
    processes: list[PolicyProcess] = []
    try:
        yield processes
    finally:
        for each in processes:
            each.kill()


def start_policy(processes: list[PolicyProcess], model: Path, folder: Path, **slow: float) -> PolicyProcess:
    """Starts one more replica on a free port; it is not ready yet."""
    started = PolicyProcess(model, free_port(), folder, **slow)
    processes.append(started)
    return started


def _serve(model: Path, port: int, generate_seconds: float, swap_seconds: float, swap_begun: Path) -> None:
    import torch

    torch.set_num_threads(1)
    config = PolicyConfig(
        server=PolicyServerConfig(host="127.0.0.1", port=port, metrics_port=0, drain_seconds=0),
        model=ModelConfig(path=model, dtype="float32", engine="transformers"),
        transformers=TransformersConfig(max_num_seqs=16),
    )
    engine = SlowEngine(
        make_engine(config), generate_seconds=generate_seconds, swap_seconds=swap_seconds, swap_begun=swap_begun
    )
    backend = PolicyBackend(engine, config)
    sys.exit(run_service(POLICY, config.server, backend.register, backend))
