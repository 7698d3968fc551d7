"""Whole runs on two ranks (gloo, CPU) learn what one does, and what one rank saved another number goes on from."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio
import torch

from rlhf.models.loading import load_policy, load_tokenizer, tokenizer_digest
from tests.support.fake_services import FakePolicy, FakeReference, FakeReward
from tests.support.forked import Command
from tests.support.ports import free_port
from tests.support.trainer_world import until

NUM_STEPS = 3


@dataclass
class World:
    """The fakes, and where the files are."""

    policy: FakePolicy
    reward: FakeReward
    reference: FakeReference
    folder: Path
    model: Path
    critic: Path

    async def run(
        self,
        algorithm: str,
        name: str,
        num_ranks: int,
        *flags: str,
        exit_codes: tuple[int, ...] = (),
        meanwhile: Callable[[Path, list[Command]], Awaitable[None]] | None = None,
    ) -> Path:
        """Runs to the end, which must be as said for every rank; returns the run's directory.

        Args: meanwhile: what happens to the processes while they run.
        """
        run_dir = self.folder / name
        arguments = {
            "run_dir": run_dir,
            "model.path": self.model,
            "model.dtype": "float32",
            "model.device": "cpu",
            "prompts.path": self.folder / "prompts.jsonl",
            "services.policy_targets": self.policy.target,
            "services.reward_target": self.reward.target,
            "services.reference_target": self.reference.target,
            "sampling.max_new_tokens": 4,
            "training.prompts_per_step": 4,
            "training.group_size": 2,
            "training.epochs": 2,
            "training.minibatches": 2,
            "training.micro_batch_tokens": 10,
            "optimizer.learning_rate": 1e-3,
            "checkpoint.every_steps": 1,
            "server.host": "127.0.0.1",
            "server.port": 0,
            "server.metrics_port": 0,
            "server.log_level": "warning",
        }
        if algorithm == "ppo":
            arguments["critic.path"] = self.critic
        words = [algorithm, *flags]
        words += [part for key, value in arguments.items() for part in (f"--{key}", str(value))]
        port = str(free_port())
        processes: list[Command] = []
        for rank in range(num_ranks):
            variables: dict[str, str] = {}
            if num_ranks > 1:
                variables = {"WORLD_SIZE": str(num_ranks), "RANK": str(rank), "LOCAL_RANK": str(rank)}
                variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            output = self.folder / f"{name}-{rank}.txt"
            processes.append(Command("services.trainer.server", *words, output=output, variables=variables))
        try:
            if meanwhile is not None:
                await asyncio.wait_for(meanwhile(run_dir, processes), 90)
            codes = await asyncio.gather(*(asyncio.to_thread(process.wait, 150) for process in processes))
        finally:
            for process in processes:
                process.kill()
        printed = "\n".join(path.read_text()[-3000:] for path in self.folder.glob(f"{name}-*.txt"))
        assert codes == list(exit_codes or (0,) * num_ranks), printed
        return run_dir


@pytest_asyncio.fixture
async def world(tmp_path: Path, tiny_model_path: Path, tiny_reward_path: Path) -> AsyncIterator[World]:
    digest = tokenizer_digest(load_tokenizer(tiny_model_path))
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": word}) + "\n" for word in ("a", "bc", "def", "ghij", "klmno"))
    )
    async with (
        FakePolicy(tokenizer=digest) as policy,
        FakeReward(tokenizer=digest) as reward,
        FakeReference(tokenizer=digest) as reference,
    ):
        yield World(policy, reward, reference, tmp_path, tiny_model_path, tiny_reward_path)


def rows(run_dir: Path, file: str = "metrics") -> list[dict[str, float]]:
    return [
        {
            name: value
            for name, value in json.loads(line).items()
            # A patch's size depends on the last bits of the weights.
            if not name.endswith(("_seconds", "_per_second", "_idle_fraction")) and not name.startswith("fleet_push_")
        }
        for line in (run_dir / f"{file}.jsonl").read_text().splitlines()
    ]


def require_close(ours: Path, theirs: Path) -> None:
    """Compares metrics and final weights to float tolerance."""
    assert len(rows(ours)) == len(rows(theirs)) == NUM_STEPS
    for one, two in zip(rows(ours), rows(theirs), strict=True):
        assert one == pytest.approx(two, rel=1e-3, abs=1e-4)
    tensors = load_policy(theirs / "final", dtype="float32").state_dict()
    for name, tensor in load_policy(ours / "final", dtype="float32").state_dict().items():
        torch.testing.assert_close(tensor, tensors[name], rtol=1e-3, atol=1e-4)


@pytest.mark.exhaustive
async def test_two_ranks_learn_what_one_does(world: World) -> None:
    heldout = world.folder / "heldout.jsonl"
    heldout.write_text("".join(json.dumps({"prompt": word}) + "\n" for word in ("x", "yz", "www")))
    flags = ["--training.steps", str(NUM_STEPS), "--evaluation.prompts_path", str(heldout)]
    flags += ["--evaluation.every_steps", "2", "--evaluation.gold_target", world.reward.target]
    one = await world.run("grpo", "one", 1, *flags)
    two = await world.run("grpo", "two", 2, *flags)
    require_close(two, one)
    assert [row["step"] for row in rows(one, "evaluations")] == [0, 2, 3]
    assert [{**row, "seconds": 0} for row in rows(two, "evaluations")] == [
        {**row, "seconds": 0} for row in rows(one, "evaluations")
    ]


@pytest.mark.exhaustive
async def test_two_ranks_sample_ahead_and_learn_what_one_does(world: World) -> None:
    # The fake answers a prompt alike whichever version it serves, so it does not matter when a push arrives.
    flags = ["--training.steps", str(NUM_STEPS), "--training.max_policy_lag", "1"]
    one = await world.run("grpo", "one", 1, *flags)
    two = await world.run("grpo", "two", 2, *flags)
    require_close(two, one)
    assert [row["policy_lag_max"] for row in rows(two)] == [0, 1, 1]


async def test_a_run_of_two_ranks_goes_on_with_one(world: World) -> None:
    whole = await world.run("ppo", "whole", 1, "--training.steps", str(NUM_STEPS))
    await world.run("ppo", "parts", 2, "--training.steps", "2")
    resumed = await world.run("ppo", "parts", 1, "--training.steps", str(NUM_STEPS), "--resume")
    require_close(resumed, whole)


async def test_a_push_that_is_refused_ends_all_ranks(world: World) -> None:
    world.policy.dtype = "BF16"
    # The main rank says what is wrong with the configuration; the other one sees that it is gone.
    run_dir = await world.run("grpo", "refused", 2, "--training.steps", "1", exit_codes=(2, 1))
    assert "serves BF16, the trainer has F32" in (world.folder / "refused-0.txt").read_text()
    assert not (run_dir / "metrics.jsonl").read_text()


async def test_a_signal_to_one_rank_stops_all_after_the_same_step(world: World) -> None:
    async def stop_the_second(run_dir: Path, processes: list[Command]) -> None:
        async def has_stepped() -> bool:
            return (run_dir / "metrics.jsonl").exists() and bool(rows(run_dir))

        await until(has_stepped)
        processes[1].send_signal(signal.SIGTERM)

    flags = ("--training.steps", "100000", "--checkpoint.every_steps", "0")
    # None of them may look finished while another is started again.
    run_dir = await world.run("grpo", "stopped", 2, *flags, exit_codes=(143, 143), meanwhile=stop_the_second)
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == [f"step-{len(rows(run_dir)):06d}"]
