"""Whole runs whose sampling runs ahead of training, against fake services."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from rlhf.client.trainer import TrainerClient
from tests.support.ports import free_port
from tests.support.trainer_world import World, make_world, until


@pytest_asyncio.fixture
async def world(tmp_path: Path, tiny_model_path: Path, tiny_reward_path: Path) -> AsyncIterator[World]:
    async with make_world(tmp_path, tiny_model_path, tiny_reward_path) as made:
        yield made


def run_ahead(world: World, lag: int, *, steps: int) -> None:
    """Makes it a GRPO run of 4 prompts with 2 completions a step, so far ahead."""
    world.take("grpo", steps=steps)
    world.settings["training"]["max_policy_lag"] = lag


def seeds(world: World) -> list[int]:
    """Returns the seeds of all prompts that were asked for, in order: each prompt of a run has its own."""
    return [prompt.seed for request in world.policy.requests for prompt in request.prompts]


async def test_each_step_is_sampled_while_the_one_before_is_trained(world: World) -> None:
    run_ahead(world, 1, steps=4)
    assert await world.start() == 0, world.output.getvalue()
    # Steps 1 and 2 are asked for with the first weights, step 3 once step 1 is trained, step 4 after step 2. Nothing is
    # asked for with the weights after step 3; those after step 4 are what the run ends with.
    assert [request.min_policy_version for request in world.policy.requests] == [1, 1, 2, 3]
    assert world.policy.pushed_versions == [1, 2, 3, 5]
    assert [row["policy_lag_max"] for row in world.rows()] == [0, 1, 1, 1]
    assert [row["policy_lag_mean"] for row in world.rows()] == [0, 1, 1, 1]
    assert len(seeds(world)) == len(set(seeds(world))) == 16
    assert all(row["dropped_rollouts"] == 0 and row["rollouts"] == 8 for row in world.rows())


async def test_no_more_than_the_lag_is_sampled_before_training_goes_on(world: World) -> None:
    run_ahead(world, 2, steps=6)
    world.reward.hold = asyncio.Event()
    running = world.start()
    await until(lambda: _asked(world, 3))
    await asyncio.sleep(0.5)  # a fourth step would have been asked for by now
    assert len(world.policy.requests) == 3
    assert world.rows() == []
    world.reward.hold.set()
    assert await running == 0, world.output.getvalue()
    assert [row["policy_lag_max"] for row in world.rows()] == [0, 1, 2, 2, 2, 2]


async def _asked(world: World, num_requests: int) -> bool:
    return len(world.policy.requests) >= num_requests


async def test_rollouts_in_flight_go_on_over_a_push_and_say_which_version_sampled_each_token(world: World) -> None:
    run_ahead(world, 1, steps=3)
    world.policy.held_call, world.policy.held_until = 1, 2
    assert await world.start() == 0, world.output.getvalue()
    assert world.policy.pushed_versions == [1, 2, 4]
    # Of the second step's 8 rollouts, 2 tokens each, the first came before the push of version 2, the others after it.
    second = world.rows()[1]
    assert (second["policy_lag_mean"], second["policy_lag_max"]) == (2 / 16, 1)
    assert all(row["rollouts"] == 8 and row["dropped_rollouts"] == 0 for row in world.rows())


async def test_what_an_older_version_sampled_than_was_asked_for_is_dropped(world: World) -> None:
    run_ahead(world, 1, steps=2)
    world.policy.sampled_version = 0
    assert await world.start() == 1
    assert "8 of 8 rollouts were dropped (8 policy_version_not_current)" in world.output.getvalue()


async def test_a_failure_ahead_ends_the_run_with_its_own_error_after_the_steps_before_it(world: World) -> None:
    run_ahead(world, 1, steps=4)
    world.settings["checkpoint"]["every_steps"] = 0
    # Steps 1 and 2 are scored before step 1 is trained.
    world.reward.outcome = lambda completion_ids: 1.0 if world.reward.scored < 16 else "NOT_FINITE"
    assert await world.start() == 1
    assert "failed at step 3: 8 of 8 rollouts were dropped (8 score_not_finite)" in world.output.getvalue()
    assert [row["step"] for row in world.rows()] == [1, 2]
    world.reward.outcome = lambda completion_ids: 2.0
    assert await world.start(resume=True) == 0, world.output.getvalue()
    assert [row["reward_mean"] for row in world.rows()] == [1, 1, 2, 2]


async def test_a_push_that_is_refused_behind_training_ends_the_run(world: World) -> None:
    run_ahead(world, 1, steps=6)
    world.policy.refuse_from = 2
    assert await world.start() == 1
    assert "tensors lacks 'lm_head.weight'" in world.output.getvalue()
    assert world.checkpoints()


async def test_a_run_ahead_can_be_paused_saved_resumed_and_stopped(world: World) -> None:
    run_ahead(world, 1, steps=10_000)
    world.settings["checkpoint"]["every_steps"] = 0
    world.settings["server"]["port"] = free_port()
    running = world.start()

    async def has_stepped(number: int) -> bool:
        return len(world.rows()) >= number

    async with TrainerClient(world.trainer) as trainer:
        await until(lambda: has_stepped(2))
        await trainer.pause()

        async def is_paused() -> bool:
            return (await trainer.get_run()).state == "paused"

        await until(is_paused)
        step = len(world.rows())
        assert Path(await trainer.save_checkpoint()).name == f"step-{step:06d}"
        await trainer.resume()
        await until(lambda: has_stepped(step + 2))
        await trainer.stop()
    assert await running == 0, world.output.getvalue()
    saved = len(world.rows())
    world.settings["training"]["steps"] = saved + 2
    assert await world.start(resume=True) == 0, world.output.getvalue()
    assert [row["step"] for row in world.rows()] == list(range(1, saved + 3))


async def test_held_out_prompts_are_answered_by_the_newest_weights(world: World, tmp_path: Path) -> None:
    run_ahead(world, 1, steps=2)
    (tmp_path / "heldout.jsonl").write_text('{"prompt": "x"}\n')
    world.settings["evaluation"] = {"prompts_path": tmp_path / "heldout.jsonl", "every_steps": 1}
    assert await world.start() == 0, world.output.getvalue()
    lines = (world.config.run_dir / "evaluations.jsonl").read_text().splitlines()
    assert [json.loads(line)["policy_version"] for line in lines] == [1, 2, 3]
