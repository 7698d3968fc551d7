"""Training a reward model on the tiny model: it learns, splits change nothing, NaN stops it, what it saves loads."""

import json
import math
from pathlib import Path

import pytest
import torch
from rich.console import Console

from rlhf_services.common.errors import ConfigError
from rlhf_services.models.scalar_model import ScalarModel
from rlhf_services.trainer.data.preferences import PreferencePair
from rlhf_services.trainer.errors import RunError
from rlhf_services.trainer.learning.optimizer import MasterOptimizer
from rlhf_services.trainer.offline.reward_model import (
    micro_batches,
    normalize,
    pair_scores,
    run_reward_model,
    train_step,
)
from rlhf_services.trainer.offline.reward_model_config import (
    PreferencesConfig,
    RewardModelBaseConfig,
    RewardModelOptimizerConfig,
    RewardModelRunConfig,
    TrainingConfig,
)

QUIET = Console(quiet=True)
OPTIMIZER = RewardModelOptimizerConfig(learning_rate=3e-3, warmup_steps=0)


def write_pairs(folder: Path, count: int = 40) -> Path:
    """Pairs whose chosen side ends in '!' and whose rejected one ends in '?': easily told apart."""
    path = folder / "pairs.jsonl"
    records = [{"prompt": f"say {i}", "chosen": f"w{i % 7}!", "rejected": f"w{i % 5}?"} for i in range(count)]
    path.write_text("\n".join(json.dumps(record) for record in records))
    return path


def make_config(tmp_path: Path, model_path: Path) -> RewardModelRunConfig:
    return RewardModelRunConfig(
        run_dir=tmp_path / "run",
        model=RewardModelBaseConfig(path=model_path, dtype="float32", device="cpu"),
        data=PreferencesConfig(path=write_pairs(tmp_path), heldout_fraction=0.25),
        training=TrainingConfig(epochs=3, pairs_per_step=8, micro_batch_tokens=256),
        optimizer=OPTIMIZER,
    )


def test_training_learns_the_preference_and_saves_a_normalised_model_that_loads(
    tmp_path: Path, tiny_model_path: Path
) -> None:
    config = make_config(tmp_path, tiny_model_path)
    report = run_reward_model(config, console=QUIET)
    assert (report.num_train_pairs, report.num_heldout_pairs) == (30, 10)
    assert report.heldout_accuracy == 1.0
    assert report.heldout_accuracy_low == pytest.approx(10 / (10 + 1.959964**2))
    assert json.loads((config.run_dir / "reward_model_report.json").read_text())["reward_std"] == report.reward_std
    steps = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == list(range(1, 13))  # 3 epochs of 30 pairs, 8 a step: 4 steps each
    assert steps[-1]["loss"] < steps[0]["loss"]
    served = ScalarModel.load(config.run_dir / "model", "float32")
    assert (served.mean, served.std) == pytest.approx((report.reward_mean, report.reward_std))


def test_a_finished_run_is_not_overwritten(tmp_path: Path, tiny_model_path: Path) -> None:
    config = make_config(tmp_path, tiny_model_path)
    (config.run_dir / "model").mkdir(parents=True)
    with pytest.raises(ConfigError, match="it holds a trained model already"):
        run_reward_model(config, console=QUIET)


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path: Path, tiny_model_path: Path) -> None:
    config = make_config(tmp_path, tiny_model_path)
    broken = config.model_copy(update={"optimizer": OPTIMIZER.model_copy(update={"learning_rate": math.inf})})
    with pytest.raises(RunError, match=r"stopped at step 2: the loss is nan"):
        run_reward_model(broken, console=QUIET)
    assert not (config.run_dir / "model").exists()


PAIRS = [
    PreferencePair((5, 6), (7,), (8, 9, 10)),
    PreferencePair((5,), (11, 12), (13,)),
    PreferencePair((6, 6, 6), (14,), (15,)),
]


def test_the_step_does_not_depend_on_the_split_into_micro_batches(tiny_model_path: Path) -> None:
    results = []
    for max_tokens in (1, 16, 1000):
        model = ScalarModel.from_policy(tiny_model_path, "float32", seed=0)
        optimizer = MasterOptimizer("reward model", model, OPTIMIZER, total_steps=1)
        config = TrainingConfig(micro_batch_tokens=max_tokens, center_coef=0.1)
        loss, _, grad_norm, _ = train_step(model, optimizer, PAIRS, config)
        results.append((loss, grad_norm))
    assert results[0] == pytest.approx(results[1], rel=1e-5)
    assert results[0] == pytest.approx(results[2], rel=1e-5)


def test_a_micro_batch_holds_both_sides_of_a_pair_and_keeps_the_budget() -> None:
    # Longest sides 5, 3 and 4 tokens, two rows a pair: 10, 6 and 8. A budget of 16 holds two pairs of up to 4 tokens.
    groups = list(micro_batches(PAIRS, 16))
    assert groups == [[PAIRS[0]], [PAIRS[2], PAIRS[1]]]


def test_after_normalisation_the_training_completions_score_mean_0_and_std_1(tiny_model_path: Path) -> None:
    model = ScalarModel.from_policy(tiny_model_path, "float32", seed=0)
    mean, std = normalize(model, PAIRS, TrainingConfig())
    scores = torch.cat(pair_scores(model, PAIRS)).detach()
    assert float(scores.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(scores.std(correction=0)) == pytest.approx(1.0, abs=1e-5)
    assert std > 0
    assert mean == model.mean
