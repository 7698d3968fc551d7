"""A run whose replicas are killed and added at random trains on every prompt once, and knows which weights said what.

The policy services are processes of their own, found in a file; reward and reference service live in this process.
"""

import json
import random
import subprocess
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.models.loading import load_policy
from services.reward.scorers.config import scorer_config
from tests.support.forked import Command
from tests.support.policy_processes import PolicyProcess, policy_processes, start_policy
from tests.support.ports import free_port
from tests.support.real_services import serving

PROMPTS_PER_STEP, GROUP_SIZE = 8, 2

CONFIG = """
run_dir = "{folder}/run"

[model]
path = "{model}"
dtype = "float32"
device = "cpu"

[critic]
path = "{critic}"

[prompts]
path = "{folder}/prompts.jsonl"

[services]
policy_targets = ["file://{folder}/replicas"]
reward_target = "{targets.reward}"
reference_target = "{targets.reference}"
wait_for_services_seconds = 60
replica_probe_seconds = 0.2
replica_hang_seconds = 2

[sampling]
max_new_tokens = 16

[training]
steps = {steps}
prompts_per_step = 8
group_size = 2
max_policy_lag = {lag}

[optimizer]
learning_rate = 1e-3

[checkpoint]
every_steps = 1
keep_last = {steps}

[server]
host = "127.0.0.1"
port = 0
metrics_port = {metrics_port}
drain_seconds = 0
log_level = "warning"
"""


@dataclass
class Chaos:
    """Replicas that come and go, and the file in which the trainer finds them."""

    folder: Path
    model: Path
    processes: list[PolicyProcess]
    chance: random.Random = field(default_factory=lambda: random.Random(50))
    alive: list[PolicyProcess] = field(default_factory=list)
    generate_seconds: float = 0.3
    """How long a replica takes over completions at least, so that most kills find some in flight."""
    metrics_port: int = field(default_factory=free_port)
    """Of the trainer."""
    kills: int = 0
    joins: int = 0
    redispatched: float = 0.0
    """Prompts that were given to another replica, when the trainer was last asked."""

    def join(self) -> None:
        """Adds a replica: it is listed at once, and loads meanwhile."""
        slow = {"generate_seconds": self.generate_seconds}
        self.alive.append(start_policy(self.processes, self.model, self.folder, **slow))
        self.joins += 1
        self.write()

    def kill(self) -> None:
        """Kills one with SIGKILL; it is listed for a while longer, as a dead pod is."""
        victim = self.alive.pop(self.chance.randrange(len(self.alive)))
        victim.kill()
        self.kills += 1

    def read_metrics(self) -> None:
        """Asks the trainer how many prompts were given to another replica; it may have ended."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=5) as answer:
                lines = answer.read().decode().splitlines()
        except OSError:
            return
        name = "rlhf_trainer_prompts_redispatched_total "
        self.redispatched = max(float(line.removeprefix(name)) for line in lines if line.startswith(name))

    def write(self) -> None:
        path = self.folder / "replicas"
        path.with_suffix(".new").write_text("".join(f"{each.target}\n" for each in self.alive))
        path.with_suffix(".new").rename(path)


def run_in_chaos(
    folder: Path,
    model: Path,
    critic: Path,
    *,
    steps: int,
    lag: int,
    replicas: int,
    seconds: float,
    every: tuple[float, float],
) -> Chaos:
    """Trains to the end while replicas are killed and added; checks the end, and what was trained on."""
    words = ("a", "bc", "def", "ghij", "klm", "no", "p")
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"say {word}"}) + "\n" for word in words))
    scorer = scorer_config(kind="pattern", pattern="[a-z]", tokenizer=str(model))
    with serving(model, scorer) as targets, policy_processes() as processes:
        chaos = Chaos(folder, model, processes, generate_seconds=seconds)
        for _ in range(replicas):
            chaos.join()
        chaos.joins = 0
        values = {"folder": folder, "model": model, "critic": critic, "targets": targets, "steps": steps, "lag": lag}
        (folder / "run.toml").write_text(CONFIG.format(**values, metrics_port=chaos.metrics_port))
        config = ("--config", folder / "run.toml")
        trainer = Command("services.trainer.server", "ppo", *config, output=folder / "output.txt")
        try:
            disturb(chaos, trainer, every)
        finally:
            trainer.kill()
        assert trainer.returncode == 0, (folder / "output.txt").read_text()[-4000:]
    return chaos


def disturb(chaos: Chaos, trainer: Command, every: tuple[float, float]) -> None:
    """Kills one replica and adds another, again and again, from the first step until the run has ended."""
    metrics = chaos.folder / "run" / "metrics.jsonl"
    while trainer.poll() is None and not (metrics.exists() and metrics.read_text()):
        time.sleep(0.02)
    while trainer.poll() is None:
        chaos.kill()
        wait(trainer, chaos.chance.uniform(*every))
        chaos.join()
        wait(trainer, chaos.chance.uniform(*every))
        chaos.read_metrics()


def wait(trainer: Command, seconds: float) -> None:
    """Returns after the time, or when the run has ended."""
    try:
        trainer.wait(seconds)
    except subprocess.TimeoutExpired:
        return


def require_each_prompt_once(run_dir: Path, steps: int) -> list[dict[str, Any]]:
    """Checks the journal against the prompts that were drawn; returns its rollouts.

    The first step, before which nothing is killed, is left out: its journal goes when its checkpoint is there.
    """
    rollouts: list[dict[str, Any]] = []
    for step in range(2, steps + 1):
        lines = (run_dir / "journal" / f"step-{step:06d}.rank-0.jsonl").read_text().splitlines()
        records = [json.loads(line[line.index("{") :]) for line in lines]
        assert [record["kind"] for record in records].count("accepted") == 1
        assert not [record for record in records if record["kind"] == "dropped"]
        trained = [record["rollout"] for record in records if record["kind"] == "sample"]
        # Prompts are numbered in the order in which they are drawn.
        first = (step - 1) * PROMPTS_PER_STEP
        drawn = [f"{first + prompt}/{index}" for prompt in range(PROMPTS_PER_STEP) for index in range(GROUP_SIZE)]
        assert sorted(each["rollout_id"] for each in trained) == sorted(drawn)
        rollouts += trained
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["rollouts"]) for row in rows] == [(n + 1, 16) for n in range(steps)]
    return rollouts


@torch.no_grad()
def largest_difference(rollouts: list[dict[str, Any]], run_dir: Path, model: Path) -> float:
    """Returns by how much a token's log-probability differs from that under the saved weights of its version."""
    largest = 0.0
    saved = {1: model}
    for path in (run_dir / "checkpoints").glob("step-*"):
        saved[json.loads((path / "state.json").read_text())["policy_version"]] = path / "policy"
    versions = {version for each in rollouts for version in each["policy_versions"]}
    for version in sorted(versions):
        policy = load_policy(saved[version], dtype="float32", device="cpu")
        for each in rollouts:
            at = torch.tensor([token == version for token in each["policy_versions"]])
            if not at.any():
                continue
            ids = torch.tensor([each["prompt_ids"] + each["completion_ids"]])
            logits = policy(ids).logits[0, len(each["prompt_ids"]) - 1 : -1].float()
            logprobs = logits.log_softmax(-1).gather(1, torch.tensor(each["completion_ids"])[:, None])[:, 0]
            largest = max(largest, (logprobs - torch.tensor(each["logprobs"]))[at].abs().max().item())
    return largest


def test_a_run_whose_replicas_come_and_go_trains_on_every_prompt_once(
    tmp_path: Path, tiny_model_path: Path, tiny_reward_path: Path
) -> None:
    chaos = run_in_chaos(
        tmp_path, tiny_model_path, tiny_reward_path, steps=7, lag=0, replicas=2, seconds=0.3, every=(0.7, 0.7)
    )
    rollouts = require_each_prompt_once(tmp_path / "run", 7)
    assert largest_difference(rollouts, tmp_path / "run", tiny_model_path) < 1e-4
    assert chaos.kills >= 1
    assert chaos.joins >= 1


@pytest.mark.exhaustive
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("lag", [0, 1])
def test_fifty_steps_of_kills_and_joins_leave_every_prompt_trained_on_once(
    tmp_path: Path, tiny_model_path: Path, tiny_reward_path: Path, lag: int
) -> None:
    chaos = run_in_chaos(
        tmp_path, tiny_model_path, tiny_reward_path, steps=51, lag=lag, replicas=4, seconds=0.8, every=(0.5, 2.0)
    )
    rollouts = require_each_prompt_once(tmp_path / "run", 51)
    difference = largest_difference(rollouts, tmp_path / "run", tiny_model_path)
    print(
        f"lag {lag}: {chaos.kills} kills, {chaos.joins} joins, {chaos.redispatched:.0f} prompts given to another "
        f"replica, largest difference {difference:.2g} nats"
    )
    assert difference < 1e-4
    assert chaos.kills >= 5
    assert chaos.joins >= 5
    assert chaos.redispatched >= 5
