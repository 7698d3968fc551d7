"""Runs that evaluate their policy on held-out prompts while they train."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.request import urlopen

import pytest
import pytest_asyncio
import torch
from safetensors.torch import load_file

from rlhf.errors import ConfigError
from tests.support.fake_services import FakeReward
from tests.support.ports import free_port
from tests.support.trainer_world import World, make_world, until


@pytest_asyncio.fixture
async def world(tmp_path: Path, tiny_model_path: Path, tiny_reward_path: Path) -> AsyncIterator[World]:
    async with make_world(tmp_path, tiny_model_path, tiny_reward_path) as made:
        made.take("grpo", steps=3)
        (tmp_path / "heldout.jsonl").write_text(
            "".join(json.dumps({"prompt": word}) + "\n" for word in ("x", "yz", "w"))
        )
        yield made


def ask_for(world: World, **settings: object) -> None:
    path = world.settings["run_dir"].parent / "heldout.jsonl"
    world.settings["evaluation"] = {"prompts_path": path, "num_prompts": 2, "completions": 3, **settings}


def evaluations(world: World) -> list[dict[str, float]]:
    return [json.loads(line) for line in (world.config.run_dir / "evaluations.jsonl").read_text().splitlines()]


async def test_held_out_prompts_are_answered_before_the_first_step_now_and_then_and_at_the_end(world: World) -> None:
    ask_for(world, every_steps=2)
    assert await world.start() == 0, world.output.getvalue()
    rows = evaluations(world)
    assert [(row["step"], row["policy_version"]) for row in rows] == [(0, 1), (2, 3), (3, 4)]
    for row in rows:
        # Seeds 0 and 1024 (2 modulo 7) draw completions of two tokens whose first, the reward, is 1, 2, 3 and 3, 4, 5.
        assert (row["reward_mean"], row["completion_tokens_mean"], row["completions"]) == (3.0, 2.0, 6)
        assert row["kl"] == pytest.approx((-1.0 - 0.5) - (-2.0 - 2.0))
        assert row["dropped"] == 0
        assert "gold_reward_mean" not in row
    assert "evaluation after step 2: reward 3.000 ± " in world.output.getvalue()
    assert world.policy.pushed_versions == [1, 2, 3, 4]


async def test_what_is_learned_is_the_same_with_and_without_evaluation(world: World, tmp_path: Path) -> None:
    assert await world.start() == 0, world.output.getvalue()
    plain, world.settings["run_dir"] = world.config.run_dir, tmp_path / "evaluated"
    ask_for(world, every_steps=1)
    assert await world.start() == 0, world.output.getvalue()
    assert len(evaluations(world)) == 4

    def learned(run_dir: Path) -> list[dict[str, float]]:
        rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        return [
            {name: row[name] for name in row if not name.endswith(("_seconds", "_per_second", "_idle_fraction"))}
            for row in rows
        ]

    assert learned(world.config.run_dir) == learned(plain)
    one, other = (load_file(path / "final/model.safetensors") for path in (plain, world.config.run_dir))
    assert all(torch.equal(one[name], other[name]) for name in one)


async def test_a_resumed_run_doubles_no_evaluation_and_shows_the_newest(world: World) -> None:
    ask_for(world, every_steps=1)
    world.settings["training"]["steps"] = 2
    assert await world.start() == 0, world.output.getvalue()
    before = evaluations(world)
    shutil.rmtree(world.config.run_dir / "checkpoints/step-000002")  # the second step is taken again
    num_asked = len(world.policy.requests)
    assert await world.start(resume=True) == 0, world.output.getvalue()
    after = evaluations(world)
    assert [row["step"] for row in after] == [0, 1, 2]
    assert after[:2] == before[:2]
    assert len(world.policy.requests) == num_asked + 1  # the step's rollouts come from the journal
    world.settings["server"] |= {"metrics_port": free_port(), "linger_seconds": 3}
    running = world.start(resume=True)

    async def has_finished() -> bool:
        return world.output.getvalue().count("finished: ") == 3

    await until(has_finished)
    url = f"http://127.0.0.1:{world.settings['server']['metrics_port']}/metrics"
    page = await asyncio.to_thread(lambda: urlopen(url, timeout=5).read().decode())
    assert "rlhf_trainer_evaluation_step 2.0" in page
    assert "rlhf_trainer_evaluation_reward_mean 3.0" in page
    assert await running == 0
    assert evaluations(world) == after


async def test_a_gold_service_that_is_away_is_done_without_and_asked_again(world: World) -> None:
    async with FakeReward(tokenizer=world.policy.tokenizer) as gold:
        gold.outcome = lambda completion_ids: -1.0 if completion_ids[0] < 5 else "TOO_LONG"
        await gold.kill()
        ask_for(world, every_steps=1, gold_target=gold.target)
        world.settings["training"]["steps"] = 1
        assert await world.start() == 0, world.output.getvalue()
        assert f"evaluation after step 1 goes without the gold reward: reward service at {gold.target}" in (
            world.output.getvalue()
        )
        await gold.start()
        world.settings["training"]["steps"] = 2
        assert await world.start(resume=True) == 0, world.output.getvalue()
    rows = evaluations(world)
    assert [row.get("gold_reward_mean") for row in rows] == [None, None, -1.0]
    assert [row["reward_mean"] for row in rows] == [3.0] * 3
    assert "reward 3.000 ± 1.960, gold -1.000 ± 0.000, KL 2.500" in world.output.getvalue()


async def test_an_evaluation_without_a_usable_completion_ends_no_run(world: World) -> None:
    ask_for(world, every_steps=100)
    world.reward.outcome = lambda completion_ids: "TOO_LONG" if world.reward.scored < 6 else float(completion_ids[0])
    assert await world.start() == 0, world.output.getvalue()
    assert "evaluation after step 0: no completion can be used (6 score_too_long)" in world.output.getvalue()
    assert [row["step"] for row in evaluations(world)] == [3]


async def test_prompts_that_are_not_there_are_refused_by_their_own_name(world: World, tmp_path: Path) -> None:
    ask_for(world, prompts_path=tmp_path / "nowhere.jsonl")
    with pytest.raises(ConfigError, match=r"evaluation\.prompts_path is '.*nowhere\.jsonl': no such file"):
        await world.start()


async def test_held_out_prompts_that_are_trained_on_are_told(world: World) -> None:
    world.settings["training"]["steps"] = 1
    ask_for(world, prompts_path=world.settings["prompts"]["path"])
    assert await world.start() == 0, world.output.getvalue()
    assert "2 of 2 prompts of evaluation.prompts_path are in prompts.path: trained on" in world.output.getvalue()
