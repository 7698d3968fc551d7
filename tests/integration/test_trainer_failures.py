"""A PPO run whose services die, lie, come back, or stay away; and what outsiders may ask of it meanwhile."""

import asyncio
import math
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from rlhf.client.trainer import Run, TrainerClient
from rlhf.errors import ConfigError, PreconditionError
from services.trainer.config.sections import CheckpointConfig
from services.trainer.state.checkpoint import CheckpointFolder
from tests.support.forked import Command
from tests.support.trainer_world import World, make_world, until


@pytest_asyncio.fixture
async def world(tmp_path: Path, tiny_model_path: Path, tiny_reward_path: Path) -> AsyncIterator[World]:
    async with make_world(tmp_path, tiny_model_path, tiny_reward_path) as made:
        yield made


async def until_run(trainer: TrainerClient, condition: Callable[[Run], bool]) -> Run:
    """Returns the run once it is as wanted."""

    async def holds() -> bool:
        return condition(await trainer.get_run())

    await until(holds)
    return await trainer.get_run()


@asynccontextmanager
async def connected(world: World) -> AsyncIterator[TrainerClient]:
    """Yields a client once the trainer answers."""
    async with TrainerClient(world.trainer) as trainer:
        await until(trainer.is_serving)
        yield trainer


async def test_a_scorer_that_dies_mid_batch_is_waited_for_and_no_reward_is_made_up(world: World) -> None:
    world.reward.hold = asyncio.Event()
    running = world.start()
    await world.reward.arrived.wait()
    await world.reward.kill()
    async with connected(world) as trainer:
        run = await until_run(trainer, lambda run: run.state == "waiting")
        assert f"reward service at {world.reward.target}" in run.message
        assert run.step == 0
    world.reward.hold = None
    await world.reward.start()
    assert await running == 0
    # The fake pays a completion's first id, at least 1; a made-up 0 would pull a mean below that.
    assert [row["rollouts"] for row in world.rows()] == [4, 4, 4]
    assert all(row["reward_mean"] >= 1.0 and row["dropped_rollouts"] == 0 for row in world.rows())
    printed = world.output.getvalue()
    assert printed.count("waiting up to 30 s for it") == 1
    assert f"reward service at {world.reward.target} is back" in printed


async def test_a_policy_that_restarted_gets_the_current_weights_before_it_samples(world: World) -> None:
    world.settings["training"]["steps"] = 2
    world.policy.hold_after_first = asyncio.Event()
    running = world.start()
    await world.policy.asked.wait()
    await world.policy.kill()
    world.policy.version, world.policy.digest, world.policy.hold_after_first = 0, "", None
    await world.policy.start()
    assert await running == 0
    assert world.policy.pushed_versions == [1, 1, 2, 3]
    # It was not even asked while it had the weights that it had loaded by itself.
    assert [request.min_policy_version for request in world.policy.requests] == [1, 1, 2]
    assert all(row["dropped_rollouts"] == 0 for row in world.rows())


async def test_a_service_that_stays_away_ends_the_run_with_its_progress_saved(world: World) -> None:
    world.settings["services"]["wait_for_services_seconds"] = 0.5
    world.settings["checkpoint"]["every_steps"] = 0
    world.settings["training"]["steps"] = 2

    def score(completion_ids: list[int]) -> float:
        if world.reward.scored == 5:  # four belong to the first step
            asyncio.get_running_loop().create_task(world.reward.kill())
        return 1.0

    world.reward.outcome = score
    assert await world.start() == 1
    assert f"failed at step 2: reward service at {world.reward.target}" in world.output.getvalue()
    assert "--resume" in world.output.getvalue()
    assert world.checkpoints() == ["step-000001"]
    world.reward.outcome = lambda completion_ids: 2.0
    await world.reward.start()
    assert await world.start(resume=True) == 0
    first, second = world.rows()
    assert (first["step"], first["reward_mean"], second["step"]) == (1, 1.0, 2)
    # What had its score before the service died is not asked for again; the rest has the new one.
    assert 1.0 < second["reward_mean"] <= 2.0


async def test_a_refused_push_ends_the_run_and_keeps_what_was_trained(world: World) -> None:
    world.policy.refuse_from = 2  # the initial weights are taken, those after the first step are not
    assert await world.start() == 1
    assert "policy service at" in world.output.getvalue()
    assert "tensors lacks 'lm_head.weight'" in world.output.getvalue()
    assert world.policy.version == 1
    assert world.checkpoints() == ["step-000001"]
    world.policy.refuse_from = math.inf
    assert await world.start(resume=True) == 0
    assert world.policy.pushed_versions == [1, 2, 3, 4]


async def test_a_loss_that_is_not_finite_names_the_step_and_keeps_the_last_good_checkpoint(world: World) -> None:
    world.reward.outcome = lambda completion_ids: 1.0 if world.reward.scored < 4 else 3e38
    assert await world.start() == 1
    printed = world.output.getvalue()
    assert "failed at step 2: " in printed
    assert "the weights were left as they were" in printed
    assert world.checkpoints() == ["step-000001"]
    assert not (world.config.run_dir / "final").exists()


async def test_too_many_failed_scores_end_the_run_with_the_reason(world: World) -> None:
    world.reward.outcome = lambda completion_ids: "NOT_FINITE"
    assert await world.start() == 1
    assert "4 of 4 rollouts were dropped (4 score_not_finite)" in world.output.getvalue()
    assert world.rows() == []


async def test_a_run_that_ended_for_want_of_scores_goes_on_when_the_service_is_mended(world: World) -> None:
    world.settings["training"]["steps"] = 2
    world.settings["checkpoint"]["every_steps"] = 0
    world.reward.outcome = lambda completion_ids: 1.0 if world.reward.scored < 4 else "NOT_FINITE"
    assert await world.start() == 1
    assert world.checkpoints() == []
    world.reward.outcome = lambda completion_ids: 2.0
    assert await world.start(resume=True) == 0
    # The first step comes from the journal, with the rewards of then; the second is sampled and scored again.
    assert [row["reward_mean"] for row in world.rows()] == [1.0, 2.0]
    assert [len(request.prompts) for request in world.policy.requests] == [4, 4, 4]


async def test_changed_sampling_does_not_train_on_rollouts_of_before(world: World) -> None:
    world.settings["training"]["steps"] = 1
    world.settings["checkpoint"]["every_steps"] = 0
    world.reward.outcome = lambda completion_ids: 3e38  # the critic's loss overflows: sampled, but not trained on
    assert await world.start() == 1
    world.reward.outcome = lambda completion_ids: 1.0
    world.settings["sampling"]["temperature"] = 0.5
    assert await world.start(resume=True) == 0
    assert [row["reward_mean"] for row in world.rows()] == [1.0]
    assert "were drawn with other settings (sampling.temperature 1.0 -> 0.5)" in world.output.getvalue()


async def test_few_failed_scores_are_dropped_and_counted(world: World) -> None:
    world.settings["training"] |= {"max_dropped_fraction": 0.25, "steps": 1}
    world.reward.outcome = lambda completion_ids: "TOO_LONG" if world.reward.scored == 0 else 1.0
    assert await world.start() == 0
    assert [(row["rollouts"], row["dropped_rollouts"]) for row in world.rows()] == [(3, 1)]


async def test_what_the_scorer_cannot_score_now_is_asked_again_and_not_dropped(world: World) -> None:
    world.settings["training"]["steps"] = 1
    # Of the first step's 4 rollouts each is refused once: a judge that is away, a scorer that took too long.
    refusals = iter(["UNAVAILABLE", "TIMEOUT", "UNAVAILABLE", "TIMEOUT"])
    world.reward.outcome = lambda completion_ids: next(refusals, 2.0)
    assert await world.start() == 0
    assert [(row["rollouts"], row["dropped_rollouts"], row["reward_mean"]) for row in world.rows()] == [(4, 0, 2.0)]
    assert world.reward.scored == 8
    assert "refused by the fake; waiting up to 30 s for it" in world.output.getvalue()


async def test_a_rollout_that_the_scorer_never_gets_done_with_is_dropped(world: World) -> None:
    world.settings["training"] |= {"max_dropped_fraction": 0.25, "steps": 1}
    poison: list[list[int]] = []

    def outcome(completion_ids: list[int]) -> float | str:
        if not poison:
            poison.append(completion_ids)
        return "TIMEOUT" if completion_ids == poison[0] else 1.0

    world.reward.outcome = outcome
    assert await world.start() == 0
    assert [(row["rollouts"], row["dropped_rollouts"]) for row in world.rows()] == [(3, 1)]
    assert world.reward.scored == 6  # the others once, and that one three times


async def test_a_scorer_that_stays_away_ends_the_run_with_its_reason(world: World) -> None:
    world.settings["services"]["wait_for_services_seconds"] = 0.5
    world.reward.outcome = lambda completion_ids: "UNAVAILABLE"
    assert await world.start() == 1
    printed = world.output.getvalue()
    assert f"failed at step 1: reward service at {world.reward.target}: refused by the fake" in printed
    assert "--resume" in printed


async def test_a_run_can_be_watched_paused_saved_resumed_and_stopped(world: World) -> None:
    world.settings["training"]["steps"] = 10_000
    world.settings["checkpoint"]["every_steps"] = 0
    running = world.start()
    async with connected(world) as trainer:
        watching = asyncio.create_task(_watch(trainer))
        await until_run(trainer, lambda run: run.step >= 2)
        await trainer.pause()
        step = (await until_run(trainer, lambda run: run.state == "paused")).step
        assert Path(await trainer.save_checkpoint()).name == f"step-{step:06d}"
        assert (await trainer.get_run()).step == step
        await trainer.resume()
        await until_run(trainer, lambda run: run.step >= step + 2)
        await trainer.stop()
        watched = await watching
    assert await running == 0
    assert watched == list(range(1, len(watched) + 1))
    assert len(watched) >= step + 2
    newest = CheckpointFolder(world.config.run_dir, CheckpointConfig()).newest()
    assert newest is not None
    assert newest.name == f"step-{len(world.rows()):06d}"
    assert "stopped after step" in world.output.getvalue()


async def _watch(trainer: TrainerClient) -> list[int]:
    return [each.step async for each in trainer.watch_run()]


async def test_a_run_that_waits_for_a_service_stops_when_asked(world: World) -> None:
    await world.reference.kill()
    running = world.start()
    async with connected(world) as trainer:
        await until_run(trainer, lambda run: run.state == "waiting")
        await trainer.stop()
    assert await running == 0


async def test_a_checkpoint_cannot_be_had_from_a_run_that_failed(world: World) -> None:
    world.settings["services"]["wait_for_services_seconds"] = 2
    await world.reference.kill()
    running = world.start()
    async with connected(world) as trainer:
        await until_run(trainer, lambda run: run.state == "waiting")
        with pytest.raises(PreconditionError, match="the run is failed; no checkpoint was written"):
            await trainer.save_checkpoint()
    assert await running == 1


async def test_a_service_of_another_model_is_refused_by_name(world: World) -> None:
    world.reference.tokenizer = "another"
    with pytest.raises(ConfigError, match=r"reference service at .* has tokenizer another, the trained policy has"):
        await world.start()


async def test_two_trainers_never_share_a_run_directory(world: World) -> None:
    world.reward.hold = asyncio.Event()
    running = world.start()
    await world.reward.arrived.wait()
    with pytest.raises(ConfigError, match="another trainer is running in it"):
        await world.start(resume=True)
    world.reward.hold.set()
    assert await running == 0


async def test_sigterm_ends_the_process_after_its_step_with_a_checkpoint_and_code_143(
    world: World, tmp_path: Path
) -> None:
    config = world.config
    arguments = {
        "run_dir": config.run_dir,
        "model.path": config.model.path,
        "critic.path": world.settings["critic"]["path"],
        "model.dtype": "float32",
        "prompts.path": config.prompts.path,
        "services.policy_targets": world.policy.target,
        "services.reward_target": world.reward.target,
        "services.reference_target": world.reference.target,
        "sampling.max_new_tokens": 4,
        "training.steps": 100_000,
        "training.prompts_per_step": 4,
        "checkpoint.every_steps": 0,
        "server.host": "127.0.0.1",
        "server.port": config.server.port,
        "server.metrics_port": 0,
    }
    flags = [part for key, value in arguments.items() for part in (f"--{key}", str(value))]
    process = Command("services.trainer.server", *flags, output=tmp_path / "output.txt")

    async def has_stepped_or_ended() -> bool:
        return bool(world.rows()) or process.returncode is not None

    try:
        await until(has_stepped_or_ended, 90)
        process.send_signal(signal.SIGTERM)
        exit_code = await asyncio.to_thread(process.wait, 60)
    finally:
        process.kill()
    assert exit_code == 128 + signal.SIGTERM, (tmp_path / "output.txt").read_text()
    assert world.checkpoints() == [f"step-{len(world.rows()):06d}"]


def test_wrong_flags_are_refused_before_torch_is_imported(tmp_path: Path) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "services.trainer.server", "--run_dir", str(tmp_path)]
    command += ["--model.path", "nowhere", "--critic.path", "r", "--prompts.path", "p"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "rlhf-trainer: model.path is 'nowhere': no such directory" in done.stderr
    assert " torch\n" not in done.stderr
