"""The real reward service, killed with SIGKILL in the middle of a batch of a PPO run and started again."""

import io
import json
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from rlhf.client import Reward, RewardClient, ScoreItem
from rlhf_cli.local.supervisor import is_serving
from services.reward.scorers.config import scorer_config
from services.trainer.config.online import PpoRunConfig
from services.trainer.rollouts.journal_file import read_lines
from services.trainer.server import run_online
from tests.support.ports import free_port
from tests.support.real_services import serving

pytestmark = pytest.mark.exhaustive

START_SECONDS = 120
NUM_STEPS = 2
ROLLOUTS_PER_STEP = 16

# Slow enough to be killed in, and it says when a batch begins and ends, in which process, and of how many items.
SLOW_SCORER = """
import os, time

class Slow:
    def __init__(self, diary):
        self.diary = diary
    def score(self, pairs):
        self.note("begin", len(pairs))
        time.sleep(0.5)
        self.note("end", len(pairs))
        return [len(pair.completion) / 10 for pair in pairs]
    def note(self, what, count):
        with open(self.diary, "a") as file:
            file.write(f"{what} {os.getppid()} {count}\\n")
"""

REWARD_TOML = """
[server]
host = "127.0.0.1"
port = {port}
metrics_port = {metrics_port}
[http]
enabled = false
[limits]
max_batch_tokens = 200
[scorer]
kind = "sum"
[[scorer.components]]
name = "slow"
weight = 0.5
kind = "python"
tokenizer = "{model}"
python = {{target = "slow_scorer:Slow", path = "{folder}", options = {{diary = "{folder}/diary"}}}}
[[scorer.components]]
name = "model"
kind = "model"
path = "{model}"
dtype = "float32"
device = "cpu"
"""


class RewardProcess:
    """`rlhf-reward` on a port that it gets again when it is started again."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.port, self.metrics_port = free_port(), free_port()
        self.target = f"127.0.0.1:{self.port}"
        self.folder = folder
        (folder / "slow_scorer.py").write_text(SLOW_SCORER)
        toml = REWARD_TOML.format(port=self.port, metrics_port=self.metrics_port, model=model, folder=folder)
        (folder / "reward.toml").write_text(toml)

    def start(self) -> None:
        command = [sys.executable, "-m", "services.reward.server", "--config", str(self.folder / "reward.toml")]
        with (self.folder / "reward.log").open("a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def wait_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not is_serving(self.port):
            assert self.process.poll() is None, (self.folder / "reward.log").read_text()
            assert time.monotonic() < deadline, (self.folder / "reward.log").read_text()
            time.sleep(0.1)

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def diary(self) -> list[tuple[str, int, int]]:
        """What happened, in which process, to how many items."""
        path = self.folder / "diary"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(what, int(pid), int(count)) for what, pid, count in map(str.split, lines)]

    def wait_for_batch(self, number: int) -> None:
        """Returns while the batch of that number (from 1) is being scored."""
        deadline = time.monotonic() + START_SECONDS
        while sum(what == "begin" for what, _, _ in self.diary()) < number:
            assert time.monotonic() < deadline, (self.folder / "reward.log").read_text()
            time.sleep(0.01)
        time.sleep(0.1)  # what the batch before gave has reached the trainer

    def num_items(self) -> int:
        """Items that the present process has answered with a reward, as it counts them itself."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return sum(int(float(line.split()[-1])) for line in lines if line.startswith("rlhf_reward_items_total "))


@contextmanager
def running(reward: RewardProcess) -> Iterator[RewardProcess]:
    reward.start()
    try:
        reward.wait_ready()
        yield reward
    finally:
        reward.process.kill()
        reward.process.wait()


def make_config(folder: Path, policy: Path, critic: Path, targets: dict[str, object]) -> PpoRunConfig:
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"say {word}"}) + "\n" for word in ("a", "bc", "def", "ghij")))
    return PpoRunConfig.model_validate(
        {
            "run_dir": folder / "run",
            "model": {"path": policy, "dtype": "float32", "device": "cpu"},
            "critic": {"path": critic},
            "prompts": {"path": prompts},
            "services": {**targets, "wait_for_services_seconds": START_SECONDS},
            "sampling": {"max_new_tokens": 8},
            "training": {"steps": NUM_STEPS, "prompts_per_step": ROLLOUTS_PER_STEP // 2, "group_size": 2},
            "checkpoint": {"every_steps": 0},  # and so the journal keeps all steps
            "server": {"host": "127.0.0.1", "port": 0, "metrics_port": 0, "drain_seconds": 0, "log_level": "error"},
        }
    )


def journaled(config: PpoRunConfig, step: int) -> list[dict[str, Any]]:
    """What the journal has of a step: a record for each rollout, with its rewards."""
    records = read_lines(config.run_dir / "journal" / f"step-{step:06d}.rank-0.jsonl").records
    assert [record for record in records if record["kind"] == "dropped"] == []
    return [record for record in records if record["kind"] == "sample"]


async def test_a_killed_scorer_costs_no_reward_and_makes_up_none(
    tmp_path: Path, tiny_model_path: Path, tiny_reward_path: Path
) -> None:
    rule = scorer_config(kind="length", tokenizer=str(tiny_model_path))  # a reward service that nobody asks
    with serving(tiny_model_path, rule) as others, running(RewardProcess(tmp_path, tiny_reward_path)) as reward:
        targets: dict[str, object] = {
            "policy_targets": [others.policy],
            "reward_target": reward.target,
            "reference_target": others.reference,
        }
        config = make_config(tmp_path, tiny_model_path, tiny_reward_path, targets)
        output, codes = io.StringIO(), []
        console = Console(file=output, width=1000)
        trainer = threading.Thread(
            target=lambda: codes.append(run_online(config, resume=False, console=console)), daemon=True
        )
        trainer.start()
        reward.wait_for_batch(2)
        first_process = reward.process.pid
        reward.kill()
        diary_of_first = [entry for entry in reward.diary() if entry[1] == first_process]
        reward.start()
        trainer.join(START_SECONDS)
        assert codes == [0], output.getvalue()
        num_by_second = reward.num_items()

        # Killed in mid-batch: it was begun and never ended.
        assert [what for what, _, _ in diary_of_first] == ["begin", "end", "begin"]
        assert f"reward service at {reward.target} is back" in output.getvalue()
        # What the first process had answered was not asked again, and what it lost was asked once.
        assert diary_of_first[1][2] + num_by_second == NUM_STEPS * ROLLOUTS_PER_STEP
        rows = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
        assert [(row["rollouts"], row["dropped_rollouts"]) for row in rows] == [(ROLLOUTS_PER_STEP, 0)] * NUM_STEPS
        for step, row in enumerate(rows, start=1):
            samples = journaled(config, step)
            assert len({sample["rollout"]["rollout_id"] for sample in samples}) == len(samples) == ROLLOUTS_PER_STEP
            rewards = [sample["rewards"]["reward"] for sample in samples]
            assert rewards == pytest.approx(await ask(reward.target, samples), abs=1e-5)
            assert row["reward_mean"] == pytest.approx(statistics.fmean(rewards), abs=1e-5)


async def ask(target: str, samples: list[dict[str, Any]]) -> list[float]:
    """What the service gives the samples' rollouts now."""
    rollouts = [sample["rollout"] for sample in samples]
    async with RewardClient(target) as client:
        items = [ScoreItem.tokens(rollout["prompt_ids"], rollout["completion_ids"]) for rollout in rollouts]
        results = (await client.score(items)).results
    rewards = [result for result in results if isinstance(result, Reward)]
    assert len(rewards) == len(results)
    assert {component.name for reward in rewards for component in reward.components} == {"slow", "model"}
    return [reward.reward for reward in rewards]
