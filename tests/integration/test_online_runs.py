"""Whole runs of PPO's relatives against fake services."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.request import urlopen

import pytest
import pytest_asyncio

from services.trainer.telemetry.step import step_metrics
from tests.support.ports import free_port
from tests.support.trainer_world import World, make_world, until


@pytest_asyncio.fixture
async def world(tmp_path: Path, tiny_model_path: Path, tiny_reward_path: Path) -> AsyncIterator[World]:
    async with make_world(tmp_path, tiny_model_path, tiny_reward_path) as made:
        yield made


@pytest.mark.parametrize("algorithm", ["grpo", "rloo", "reinforce++", "online-dpo"])
async def test_every_relative_of_ppo_runs_by_the_same_loop(world: World, algorithm: str) -> None:
    world.take(algorithm, steps=2)
    assert await world.start() == 0, world.output.getvalue()
    names = set(step_metrics(world.config))
    assert [row.keys() - {"step"} for row in world.rows()] == [names, names]
    assert [row["policy_steps"] for row in world.rows()] == [1.0, 1.0]
    assert world.policy.pushed_versions == [1, 2, 3]


async def test_a_step_of_ties_leaves_the_policy_and_its_version(world: World) -> None:
    world.take("online-dpo", steps=2)
    world.reward.outcome = lambda completion_ids: 1.0
    assert await world.start() == 0, world.output.getvalue()
    assert [(row["pairs"], row["ties"], row["policy_version"]) for row in world.rows()] == [(0.0, 4.0, 1.0)] * 2
    assert world.policy.pushed_versions == [1]


async def test_groups_that_teach_nothing_are_replaced(world: World) -> None:
    world.take("grpo", steps=1)
    world.settings["groups"] = {"drop_uniform": True, "max_rounds": 3}
    # Four groups of two are scored in the first round.
    world.reward.outcome = lambda completion_ids: 1.0 if world.reward.scored < 8 else float(completion_ids[0])
    assert await world.start() == 0, world.output.getvalue()
    (row,) = world.rows()
    assert (row["rollouts"], row["uniform_groups"], row["uniform_rollouts"]) == (8.0, 4.0, 8.0)


async def test_prompts_of_which_none_teaches_anything_end_the_run(world: World) -> None:
    world.take("grpo", steps=1)
    world.settings["groups"] = {"drop_uniform": True, "max_rounds": 2}
    world.reward.outcome = lambda completion_ids: 1.0
    assert await world.start() == 1
    assert "8 prompts got equal rewards, in 2 rounds" in world.output.getvalue()


async def test_metrics_can_be_read_for_a_while_after_the_last_step(world: World) -> None:
    world.take("grpo", steps=1)
    world.settings["server"] |= {"metrics_port": free_port(), "linger_seconds": 3}
    running = world.start()
    url = f"http://127.0.0.1:{world.settings['server']['metrics_port']}/metrics"

    async def has_finished() -> bool:
        return "finished: " in world.output.getvalue()

    await until(has_finished)
    page = await asyncio.to_thread(lambda: urlopen(url, timeout=5).read().decode())
    assert 'rlhf_trainer_state{state="finished"} 1.0' in page
    assert "rlhf_trainer_step 1.0" in page
    assert await running == 0
