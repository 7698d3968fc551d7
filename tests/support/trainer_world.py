"""An online run against fake services: its settings, how to start it, and what it leaves."""

import asyncio
import io
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from rich.console import Console

from rlhf.models.loading import load_tokenizer, tokenizer_digest
from services.trainer.config.online import OnlineRunConfig
from services.trainer.server import run_online
from services.trainer.trainings import ONLINE
from tests.support.fake_services import FakePolicy, FakeReference, FakeReward
from tests.support.ports import free_port


class PickyPolicy(FakePolicy):
    """Refuses pushes from a version on, or holds one of its calls until it was given a version, if told to."""

    refuse_from: float = math.inf
    held_call: int = -1
    """Which call of Generate, from 0, is held after its first rollout."""
    held_until: int = 0
    """The version that it waits for."""

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:
        is_held = len(self.requests) == self.held_call

        async def may_go_on() -> bool:
            return not is_held or self.version >= self.held_until

        async for response in super().Generate(request, context):
            yield response
            await until(may_go_on)

    async def UpdateWeights(self, request_iterator: Any, context: Any) -> Any:
        if len(self.pushed_versions) + 1 >= self.refuse_from:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "tensors lacks 'lm_head.weight'; push all of them")
        return await super().UpdateWeights(request_iterator, context)


@dataclass
class World:
    """The fakes, a run's configuration, and what it printed."""

    policy: PickyPolicy
    reward: FakeReward
    reference: FakeReference
    settings: dict[str, Any]
    output: io.StringIO
    algorithm: str = "ppo"

    def take(self, algorithm: str, *, steps: int) -> None:
        """Makes the run one of another algorithm, with two completions a prompt."""
        self.algorithm = algorithm
        self.settings.pop("critic")
        self.settings["training"] = {"steps": steps, "prompts_per_step": 4, "group_size": 2}

    @property
    def config(self) -> OnlineRunConfig:
        return ONLINE[self.algorithm].config_class.model_validate(self.settings)

    @property
    def trainer(self) -> str:
        return f"127.0.0.1:{self.settings['server']['port']}"

    def start(self, *, resume: bool = False) -> "asyncio.Task[int]":
        console = Console(file=self.output, width=1000)
        return asyncio.create_task(asyncio.to_thread(run_online, self.config, resume=resume, console=console))

    def rows(self) -> list[dict[str, float]]:
        path = self.config.run_dir / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def checkpoints(self) -> list[str]:
        return sorted(path.name for path in (self.config.run_dir / "checkpoints").glob("step-*"))


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 60.0) -> None:
    """Returns once the condition holds; fails after the given time."""
    async with asyncio.timeout(seconds):
        while True:
            if await condition():
                return
            await asyncio.sleep(0.02)


@asynccontextmanager
async def make_world(tmp_path: Path, tiny_model_path: Path, tiny_reward_path: Path) -> AsyncIterator[World]:
    """Yields fakes that serve, and the settings of a small PPO run against them."""
    digest = tokenizer_digest(load_tokenizer(tiny_model_path))
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": word}) + "\n" for word in ("a", "bc", "def", "ghij")))
    async with (
        PickyPolicy(tokenizer=digest) as policy,
        FakeReward(tokenizer=digest) as reward,
        FakeReference(tokenizer=digest) as reference,
    ):
        settings: dict[str, Any] = {
            "run_dir": tmp_path / "run",
            "model": {"path": tiny_model_path, "dtype": "float32"},
            "critic": {"path": tiny_reward_path},
            "prompts": {"path": prompts},
            "services": {
                "policy_targets": [policy.target],
                "reward_target": reward.target,
                "reference_target": reference.target,
                "wait_for_services_seconds": 30,
            },
            "sampling": {"max_new_tokens": 4},
            "training": {"steps": 3, "prompts_per_step": 4},
            "checkpoint": {"every_steps": 1, "keep_last": 3},
            "server": {"host": "127.0.0.1", "port": free_port(), "metrics_port": 0, "log_level": "error"},
        }
        yield World(policy, reward, reference, settings, io.StringIO())
