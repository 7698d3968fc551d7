"""Early stop, critic warm-up, value heads, demonstrations, reward shaping, and state that survives a checkpoint."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf.data.chat import ChatExample
from rlhf.learning.batch import collate
from rlhf.learning.batch_scores import RewardShaper
from rlhf.learning.config import RewardShapingConfig
from rlhf.learning.ranks import Ranks
from rlhf.models.loading import load_tokenizer
from rlhf.models.policy_model import PolicyModel, completion_logprobs
from rlhf.models.sequences import pad_sequences
from services.trainer.config.sections import CheckpointConfig
from services.trainer.loading import load_run
from services.trainer.state.checkpoint import CheckpointFolder
from services.trainer.telemetry.step import step_metrics
from services.trainer.trainings import ONLINE
from tests.unit.rlhf.learning.online_updaters import (
    ALGORITHM_NAMES,
    SAMPLES,
    Maker,
    moments,
    on_policy,
    policy_weights,
    sample,
    weights,
)


@pytest.fixture(scope="session")
def make(tiny_model_path: Path, tiny_reward_path: Path) -> Maker:
    return Maker(tiny_model_path, tiny_reward_path)


def test_a_policy_that_moved_too_far_skips_the_rest_of_its_minibatches(make: Maker) -> None:
    training = {"epochs": 4, "minibatches": 2}
    free = make(training=training, learning_rate=1e-2).update(collate(SAMPLES), 1).metrics
    assert free["policy_steps"] == 8.0
    updater = make(training=training, loss={"max_approx_kl": 1e-6}, learning_rate=1e-2)
    metrics = updater.update(collate(SAMPLES), 1).metrics
    # The first step is taken from where the KL is 0; the second minibatch sees that the policy has moved.
    assert metrics["policy_steps"] == 1.0
    assert metrics["approx_kl"] > 1e-6
    once = make(training=training, loss={"max_approx_kl": 1e-6}, learning_rate=1e-2)
    again = once.update(collate(SAMPLES), 1).metrics
    assert torch.equal(policy_weights(once), policy_weights(updater))
    assert again["policy_steps"] == 1.0


@pytest.mark.parametrize("training", [{}, {"epochs": 2, "minibatches": 2}])
def test_warm_up_trains_the_critic_and_leaves_the_policy_as_it_is(make: Maker, training: dict[str, int]) -> None:
    updater = make(training=training, critic={"warmup_steps": 2}, kl={"target": 1.0, "coef": 0.2, "horizon": 40})
    batch = on_policy(updater, kl=1.0)
    assert updater.critic is not None
    for step in (1, 2):
        policy_before, all_before = policy_weights(updater), weights(updater).clone()
        update = updater.update(batch, step)
        assert torch.equal(policy_weights(updater), policy_before)
        assert not torch.equal(weights(updater), all_before)
        assert not update.policy_changed
        assert (update.metrics["policy_steps"], update.metrics["policy_loss"]) == (0.0, 0.0)
        assert update.metrics["value_loss"] > 0
        assert updater.kl_controller.coef == 0.2
    before = policy_weights(updater)
    assert updater.update(batch, 3).policy_changed
    assert not torch.equal(policy_weights(updater), before)


def test_a_value_head_starts_at_0_and_learns_with_the_policy(make: Maker) -> None:
    updater = make(critic={"kind": "head", "head_coef": 1.0, "value_clip_eps": 100.0}, kl={"coef": 0.0})
    assert updater.critic is None
    batch = on_policy(updater)
    first = updater.update(batch, 1).metrics
    assert first["value_mean"] == 0.0
    # 1/2 (0 - R)^2 over the tokens, with the returns of lambda 0.95 and values 0: R = 0.95^(tokens to the last) r.
    squares = [
        (reward * 0.95**left) ** 2
        for reward, length in ((1.0, 4), (-1.0, 2), (0.5, 3), (-0.5, 5))
        for left in range(length)
    ]
    assert first["value_loss"] == pytest.approx(sum(squares) / 2 / 14, rel=1e-5)
    for step in range(2, 20):
        metrics = updater.update(batch, step).metrics
    assert metrics["value_loss"] < first["value_loss"]
    assert metrics["value_explained_variance"] > first["value_explained_variance"]
    assert not any("value_head" in name for name, _ in updater.policy.weights())


DEMONSTRATIONS = [
    ChatExample((5, 6, 7, 8), (False, False, True, True)),
    ChatExample((9, 10, 11), (False, True, True)),
    ChatExample((12, 13, 14, 15, 16), (False, True, False, True, True)),
]


def test_demonstrations_add_their_gradient_to_the_policy_s(make: Maker) -> None:
    ptx = {"path": "unused", "coef": 0.5, "examples_per_minibatch": 3}
    plain, mixed = make("grpo"), make("grpo", ptx=ptx, demonstrations=DEMONSTRATIONS)
    batch = on_policy(plain)
    plain.update(batch, 1)
    metrics = mixed.update(batch, 1).metrics
    module = make("grpo").policy.module
    assert isinstance(module, PolicyModel)
    # 2 + 2 + 3 = 7 trained tokens; of the third example the middle one is somebody else's.
    sequences = pad_sequences([[5, 6], [9], [12]], [[7, 8], [10, 11], [13, 14, 15, 16]])
    logprobs = completion_logprobs(module, sequences, 1.0)
    nll = -(logprobs[0, :2].sum() + logprobs[1, :2].sum() + logprobs[2, [0, 2, 3]].sum()) / 7
    nll.backward()
    assert metrics["ptx_loss"] == pytest.approx(float(nll.detach()), rel=1e-5)
    gradient = torch.cat(
        [parameter.grad.flatten() for _, parameter in sorted(module.named_parameters()) if parameter.grad is not None]
    )
    # Adam's first moment is a tenth of the gradient.
    torch.testing.assert_close(moments(mixed) - moments(plain), 0.1 * 0.5 * gradient, rtol=1e-3, atol=1e-6)


def test_demonstrations_do_not_depend_on_the_micro_batches(make: Maker) -> None:
    ptx = {"path": "unused", "coef": 0.5, "examples_per_minibatch": 2}
    updaters = [
        make("grpo", ptx=ptx, demonstrations=DEMONSTRATIONS, training={"micro_batch_tokens": tokens})
        for tokens in (1, 10_000)
    ]
    losses = [updater.update(on_policy(updater), 1).metrics["ptx_loss"] for updater in updaters]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(moments(updaters[0]), moments(updaters[1]), rtol=1e-3, atol=1e-6)


def shape(settings: dict[str, Any], rewards: list[float]) -> tuple[list[float], dict[str, float]]:
    """Shapes the rewards of completions of 1, 2, 3 ... tokens, of which the last was cut off."""
    samples = [
        sample([5], [9] * (index + 1), reward, stopped=index + 1 < len(rewards)) for index, reward in enumerate(rewards)
    ]
    shaped, metrics = RewardShaper(RewardShapingConfig(**settings), 4).shape(collate(samples))
    return shaped.tolist(), metrics


def test_rewards_are_clipped_and_penalised_in_that_order() -> None:
    shaped, metrics = shape({"clip": 1.0, "missing_stop_penalty": 0.5}, [3.0, -0.5, 0.25, 2.0])
    assert shaped == [1.0, -0.5, 0.25, 0.5]
    assert metrics == {"shaped_reward_mean": pytest.approx(1.25 / 4), "reward_clipped_fraction": 0.5}


def test_long_completions_are_taxed_towards_the_limit() -> None:
    # Limit 4, buffer 2: nothing up to 2 tokens, half at 3, all at 4.
    shaped, _ = shape({"overlong_buffer_tokens": 2, "overlong_penalty": 4.0}, [0.0, 0.0, 0.0, 0.0])
    assert shaped == [0.0, 0.0, -2.0, -4.0]


def test_running_normalisation_remembers_earlier_steps() -> None:
    shaper = RewardShaper(RewardShapingConfig(normalize="running"), 4)
    pair = [sample([5], [9], 1.0), sample([5], [9], 3.0)]
    torch.testing.assert_close(shaper.shape(collate(pair))[0], torch.tensor([-1.0, 1.0]))  # mean 2, std 1
    restored = RewardShaper(RewardShapingConfig(normalize="running"), 4)
    restored.load_state_dict(json.loads(json.dumps(shaper.state_dict())))
    later = collate([replace(each, rewards={"reward": 6.0}) for each in pair])
    # 1, 3, 6, 6: mean 4, std sqrt((9 + 1 + 4 + 4) / 4).
    expected = torch.full((2,), 2 / (18 / 4) ** 0.5)
    torch.testing.assert_close(shaper.shape(later)[0], expected)
    torch.testing.assert_close(restored.shape(later)[0], expected)


def test_equal_rewards_normalise_to_0() -> None:
    assert shape({"normalize": "running"}, [2.0, 2.0])[0] == [0.0, 0.0]


def test_an_update_reports_what_the_run_s_metrics_are(make: Maker) -> None:
    given_by_the_loop = {
        *("rollouts", "dropped_rollouts", "uniform_groups", "uniform_rollouts", "tokens", "policy_version"),
        *("completion_tokens_mean", "stopped_fraction", "reward_length_correlation", "reward_spread_mean"),
        *("tokens_per_second", "generate_tokens_per_second", "generate_seconds", "score_wait_seconds"),
        *("reference_wait_seconds", "fleet_push_seconds", "fleet_push_pause_seconds", "step_seconds"),
        *("fleet_push_bytes", "fleet_push_changed_fraction", "generator_idle_fraction", "trainer_idle_fraction"),
    }
    for algorithm in ALGORITHM_NAMES:
        sections = {"reward": {"clip": 1.0}, "ptx": {"path": "unused", "coef": 0.1}}
        names = step_metrics(make.config(algorithm, **sections)).keys()
        found = make(algorithm, demonstrations=DEMONSTRATIONS, **sections).update(collate(SAMPLES), 1).metrics
        assert names - given_by_the_loop <= found.keys()
        assert ("value_loss" in names) == (algorithm == "ppo")
        assert ("clip_fraction" in names) == (algorithm != "online-dpo")


@pytest.mark.parametrize(
    ("algorithm", "sections"),
    [
        *((name, {}) for name in ALGORITHM_NAMES),
        ("ppo", {"critic": {"kind": "head"}}),
        ("grpo", {"lora": {"rank": 4}, "model": {"activation_checkpointing": True}}),
        ("ppo", {"kl": {"target": 1.0}, "reward": {"normalize": "running"}, "ptx": {"coef": 0.2}}),
    ],
)
def test_saved_and_loaded_the_next_step_is_equal_bit_for_bit(
    make: Maker, tmp_path: Path, algorithm: str, sections: dict[str, dict[str, Any]]
) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    (tmp_path / "demonstrations.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 3)
    values = make.config(algorithm, **{**sections, "ptx": {}}).model_dump(exclude_unset=True)
    values |= {"run_dir": tmp_path, "prompts": {"path": tmp_path / "prompts.jsonl"}}
    if "ptx" in sections:
        values["ptx"] = {"path": tmp_path / "demonstrations.jsonl", **sections["ptx"]}
    values["training"] |= {"epochs": 2, "minibatches": 2}
    config = ONLINE[algorithm].config_class.model_validate(values)
    run = load_run(config, None, resume=False, ranks=Ranks())
    batch = collate(SAMPLES)
    run.prompts.draw(3)
    run.updater.update(batch, 1)
    run.step += 1
    folder = CheckpointFolder(tmp_path, CheckpointConfig())
    checkpoint = folder.save(1, run.state(config), run.write_models)
    loaded = load_run(config, checkpoint, resume=True, ranks=Ranks())
    assert loaded.notes == []
    assert (loaded.step, loaded.policy_version) == (1, run.policy_version)
    assert loaded.prompts.draw(3) == run.prompts.draw(3)
    ours, theirs = run.updater.update(batch, 2).metrics, loaded.updater.update(batch, 2).metrics
    assert {name: value for name, value in ours.items() if not name.endswith("seconds")} == {
        name: value for name, value in theirs.items() if not name.endswith("seconds")
    }
    assert torch.equal(weights(loaded.updater), weights(run.updater))
    assert loaded.state(config) == run.state(config)
    assert load_tokenizer(checkpoint / "policy") is not None  # it can be served as it is
