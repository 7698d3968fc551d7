"""Whole PPO runs of the tiny random model through real policy, reward and reference services over real sockets."""

import asyncio
import io
import json
import statistics
from pathlib import Path

import pytest
import torch
from rich.console import Console

from rlhf.client.policy import PolicyClient
from rlhf.errors import ConfigError
from rlhf.models.loading import load_policy
from rlhf.models.weights import checkpoint_manifest
from services.reward.scorers.config import scorer_config
from services.trainer.config.online import PpoRunConfig
from services.trainer.config.sections import CheckpointConfig
from services.trainer.server import run_online
from services.trainer.state.checkpoint import CheckpointFolder, read_state
from services.trainer.telemetry.step import step_metrics
from tests.support.real_services import Targets, serving

NUM_STEPS = 10


def make_config(
    folder: Path, policy: Path, critic: Path, targets: Targets, steps: int = NUM_STEPS, **kl: object
) -> PpoRunConfig:
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"say {word}"}) + "\n" for word in ("a", "bc", "def", "ghij")))
    return PpoRunConfig.model_validate(
        {
            "run_dir": folder / "run",
            "model": {"path": policy, "dtype": "float32", "device": "cpu"},
            "critic": {"path": critic},
            "prompts": {"path": prompts},
            "services": {
                "policy_targets": [targets.policy],
                "reward_target": targets.reward,
                "reference_target": targets.reference,
            },
            "sampling": {"max_new_tokens": 12},
            "training": {
                "steps": steps,
                "prompts_per_step": 32,
                "group_size": 2,
                "epochs": 4,
                "minibatches": 2,
            },
            "kl": {"coef": 0.01, **kl},
            "optimizer": {"learning_rate": 1e-3},
            "critic_optimizer": {"learning_rate": 3e-3},
            "checkpoint": {"every_steps": 4, "keep_last": 2},
            "server": {"host": "127.0.0.1", "port": 0, "metrics_port": 0, "drain_seconds": 0, "log_level": "warning"},
        }
    )


def run(config: PpoRunConfig, *, resume: bool = False) -> str:
    """Runs to the end, which must be a good one; returns what was printed."""
    output = io.StringIO()
    assert run_online(config, resume=resume, console=Console(file=output, width=200)) == 0, output.getvalue()
    return output.getvalue()


def steps(config: PpoRunConfig) -> list[dict[str, float]]:
    return [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]


def served_digest(target: str) -> tuple[int, str]:
    async def ask() -> tuple[int, str]:
        async with PolicyClient(target) as policy:
            model = await policy.get_model()
            return model.policy_version, model.weights_digest

    return asyncio.run(ask())


def test_a_run_raises_the_reward_and_the_policy_serves_what_was_learned(
    tmp_path: Path, tiny_model_path: Path, tiny_reward_path: Path
) -> None:
    # One point for every small letter: 26 of the 260 tokens, so about 1.2 of 12 at random.
    scorer = scorer_config(kind="pattern", pattern="[a-z]", pattern_mode="count", tokenizer=str(tiny_model_path))
    with serving(tiny_model_path, scorer) as targets:
        config = make_config(tmp_path, tiny_model_path, tiny_reward_path, targets)
        output = run(config)
        rows = steps(config)
        assert [row["step"] for row in rows] == list(range(1, NUM_STEPS + 1))
        assert all(row.keys() == {"step", *step_metrics(config)} for row in rows)
        rewards = [row["reward_mean"] for row in rows]
        assert statistics.fmean(rewards[-3:]) > statistics.fmean(rewards[:3]) + 0.5
        assert rows[0]["kl"] < 1e-3 < rows[-1]["kl"]  # it began as the reference, and moved
        # In float32 both sides compute the same numbers, after every push.
        assert max(row["sampler_mismatch"] for row in rows) < 1e-4
        assert all(row["dropped_rollouts"] == 0 and row["rollouts"] == 64 for row in rows)
        assert f"step {NUM_STEPS}/{NUM_STEPS}" in output
        final = checkpoint_manifest(config.run_dir / "final", "float32").digest
        assert served_digest(targets.policy) == (1 + NUM_STEPS, final)
    assert [path.name for path in sorted((config.run_dir / "checkpoints").iterdir())] == ["step-000008", "step-000010"]


def test_a_resumed_run_goes_on_where_it_stopped_and_ends_with_the_same_weights(
    tmp_path: Path, tiny_model_path: Path, tiny_reward_path: Path
) -> None:
    scorer = scorer_config(kind="model", path=str(tiny_reward_path), dtype="float32", device="cpu")
    (tmp_path / "whole").mkdir()
    (tmp_path / "halves").mkdir()
    with serving(tiny_model_path, scorer) as targets:
        whole = make_config(tmp_path / "whole", tiny_model_path, tiny_reward_path, targets, steps=4, target=2.0)
        run(whole)
        first = make_config(tmp_path / "halves", tiny_model_path, tiny_reward_path, targets, steps=2, target=2.0)
        run(first)
        checkpoint = CheckpointFolder(first.run_dir, CheckpointConfig()).newest()
        assert checkpoint is not None
        state = read_state(checkpoint)
        assert state is not None
        assert (state["step"], state["policy_version"], state["prompts"]["cursor"]) == (2, 3, 64)
        second = make_config(tmp_path / "halves", tiny_model_path, tiny_reward_path, targets, steps=4, target=2.0)
        output = run(second, resume=True)
        assert "the configuration is not that of the checkpoint: training.steps 2 -> 4" in output
        assert [row["step"] for row in steps(second)] == [1, 2, 3, 4]
        assert [row["kl_coef"] for row in steps(second)] == pytest.approx([row["kl_coef"] for row in steps(whole)])
        assert served_digest(targets.policy)[0] == 5
    undisturbed = load_policy(whole.run_dir / "final", dtype="float32").state_dict()
    resumed = load_policy(second.run_dir / "final", dtype="float32").state_dict()
    for name, tensor in undisturbed.items():
        # The order in which rollouts are batched for scoring is not fixed, so the last bits may differ.
        torch.testing.assert_close(resumed[name], tensor, rtol=1e-3, atol=1e-4)


def test_a_run_directory_is_not_used_twice_by_mistake(
    tmp_path: Path, tiny_model_path: Path, tiny_reward_path: Path
) -> None:
    config = make_config(tmp_path, tiny_model_path, tiny_reward_path, Targets("a:1", "b:1", "c:1"))
    CheckpointFolder(config.run_dir, CheckpointConfig()).save(3, {}, lambda path: None)
    with pytest.raises(ConfigError, match="it holds a run already, up to step-000003; go on with --resume"):
        run(config)
