"""Runs on the tests' cluster: what is submitted, and what of them lies in the volume."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.deploy.kube import Cluster

PROMPTS_PER_STEP = 4

CONFIG = f"""
run_dir = "runs/here"

[model]
path = "/models/policy"

[critic]
kind = "head"

[prompts]
path = "prompts.jsonl"

[sampling]
max_new_tokens = 64

[training]
steps = {{steps}}
prompts_per_step = {PROMPTS_PER_STEP}

[checkpoint]
every_steps = {{checkpoint_every}}
"""


@dataclass
class TinyRun:
    """A PPO run with as many prompts as it needs, each for one step."""

    cluster: Cluster
    folder: Path
    name: str
    steps: int
    checkpoint_every: int = 0
    """0: the journal keeps the rollouts of every step."""
    prompts: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.prompts = [f"{self.name} {index}" for index in range(self.steps * PROMPTS_PER_STEP)]
        text = CONFIG.format(steps=self.steps, checkpoint_every=self.checkpoint_every)
        (self.folder / f"{self.name}.toml").write_text(text)
        (self.folder / "prompts.jsonl").write_text("".join(f'{{"prompt": "{each}"}}\n' for each in self.prompts))

    @property
    def arguments(self) -> Sequence[str]:
        """What stands after `rlhf submit`."""
        config, prompts = self.folder / f"{self.name}.toml", self.folder / "prompts.jsonl"
        return ("ppo", "--config", str(config), "--file", str(prompts))

    def submit(self, *flags: str) -> str:
        """Submits the run; returns what was printed."""
        return self.cluster.rlhf("submit", *self.arguments, *flags)

    def steps_done(self) -> list[int]:
        """Returns the steps in metrics.jsonl, in its order."""
        return [row["step"] for row in self.rows()]

    def rows(self) -> list[dict[str, Any]]:
        """Returns the whole lines of metrics.jsonl; none if there is no such file yet."""
        command = ("sh", "-c", f"cat /runs/{self.name}/metrics.jsonl 2>/dev/null || true")
        lines = self.cluster.inside("toolbox", *command).splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("}\n")]

    def journaled(self) -> list[dict[str, Any]]:
        """Returns the rollouts of the journal, in its order; each line is a checksum and a record."""
        lines = self.cluster.inside("toolbox", "sh", "-c", f"cat /runs/{self.name}/journal/*.jsonl").splitlines()
        records = [json.loads(line.partition(" ")[2]) for line in lines]
        return [record["rollout"] for record in records if record["kind"] == "sample"]

    def succeeded(self) -> bool:
        """Whether its Job is complete."""
        return bool(self.cluster.get("job", f"run-{self.name}")["status"].get("succeeded"))

    def wait_for_step(self, step: int, seconds: float = 120) -> None:
        """Waits until a step is done."""
        self.cluster.wait_until(lambda: len(self.rows()) >= step, f"step {step} of run {self.name}", seconds)

    def wait_until_complete(self, seconds: float = 240) -> None:
        """Waits until its Job is complete."""
        self.cluster.wait_until(self.succeeded, f"run {self.name} to complete", seconds)
