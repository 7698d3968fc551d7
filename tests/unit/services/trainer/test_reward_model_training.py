"""Training reward models on the tiny model: losses by hand, splits change nothing, ensembles, resume, what is saved."""

import json
import math
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from rlhf.config import load_config
from rlhf.data.preferences import Choice, PreferenceGroup
from rlhf.errors import ConfigError, RunError, StoppedError
from rlhf.learning.config import LoraConfig
from rlhf.learning.ranks import Ranks
from rlhf.learning.trained_model import TrainedModel
from rlhf.models.scalar_model import ScalarModel
from services.reward.scorers.config import build_scorer, scorer_config
from services.reward.scorers.scorer import TextPair
from services.trainer.config.offline import (
    EnsembleConfig,
    OfflineOptimizerConfig,
    PreferencesConfig,
    RewardModelBaseConfig,
    RewardModelCheckpointConfig,
    RewardModelRunConfig,
    TrainingConfig,
)
from services.trainer.offline import fit as fit_module
from services.trainer.offline.fit import train_step
from services.trainer.offline.reward_model.report import read_report
from services.trainer.offline.reward_model.task import RewardModelTask, group_scores, normalize, score_groups
from services.trainer.offline.reward_model.train import run_reward_model
from services.trainer.service.signals import NUMBERS
from tests.support.tiny_model import make_tiny_model

QUIET = Console(quiet=True)
OPTIMIZER = OfflineOptimizerConfig(learning_rate=3e-3, warmup_steps=0)
ALONE = Ranks()


def write_pairs(folder: Path, count: int = 40) -> Path:
    """Pairs whose chosen side ends in '!' and whose rejected one ends in '?': easily told apart."""
    path = folder / "pairs.jsonl"
    records = [{"prompt": f"say {i}", "chosen": f"w{i % 7}!", "rejected": f"w{i % 5}?"} for i in range(count)]
    path.write_text("\n".join(json.dumps(record) for record in records))
    return path


def make_config(tmp_path: Path, model_path: Path, **sections: Any) -> RewardModelRunConfig:
    defaults: dict[str, Any] = {
        "data": PreferencesConfig(path=write_pairs(tmp_path), heldout_fraction=0.25),
        "training": TrainingConfig(epochs=3, examples_per_step=8, micro_batch_tokens=256),
        "optimizer": OPTIMIZER,
    }
    return RewardModelRunConfig(
        run_dir=tmp_path / "run",
        model=RewardModelBaseConfig(path=model_path, dtype="float32", device="cpu"),
        **(defaults | sections),
    )


class TableModel(nn.Module):
    """Scores a sequence by its last token id through a table that learns, and counts the sequences it sees."""

    def __init__(self, scores: Sequence[float]) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.tensor(scores, dtype=torch.float64))
        self.rows_seen = 0

    def forward(self, sequences: Any, rows: Tensor, positions: Tensor) -> Tensor:
        self.rows_seen += len(rows)
        return self.scores[sequences.input_ids[rows, positions]]


def loss_of(model: TableModel, groups: Sequence[PreferenceGroup], center_coef: float = 0.0) -> Tensor:
    task = RewardModelTask(model, center_coef)
    return task.loss(groups, task.normalizer(groups))[0]


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def ranking(*completions: int) -> PreferenceGroup:
    choices = tuple(Choice(i, j) for i in range(len(completions)) for j in range(i + 1, len(completions)))
    return PreferenceGroup((0,), tuple((each,) for each in completions), choices)


def test_a_ranking_costs_one_forward_row_a_completion_and_its_loss_is_the_mean_over_its_pairs() -> None:
    model = TableModel([0.0, 3.0, 1.0, 2.0, 0.5])
    loss = loss_of(model, [ranking(1, 2, 3, 4)])
    assert model.rows_seen == 4  # not the 12 sides of 6 pairs
    # Scores 3, 1, 2, 0.5, best first: differences 2, 1, 2.5, -1, 0.5, 1.5
    expected = sum(softplus(-d) for d in (2, 1, 2.5, -1, 0.5, 1.5)) / 6
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    # d softplus(-d) / dd = -sigmoid(-d); the best completion has 2, 1 and 2.5, a sixth of each.
    assert float(model.scores.grad[1]) == pytest.approx(-sum(1 / (1 + math.exp(d)) for d in (2, 1, 2.5)) / 6)


def test_a_prompt_weighs_the_same_whether_it_has_one_pair_or_six() -> None:
    model = TableModel([0.0, 3.0, 1.0, 2.0, 0.5])
    alone = [loss_of(model, [each]).item() for each in (ranking(1, 2), ranking(1, 2, 3, 4))]
    assert loss_of(model, [ranking(1, 2), ranking(1, 2, 3, 4)]).item() == pytest.approx(sum(alone) / 2)


def test_margin_soft_label_and_centring_by_hand() -> None:
    model = TableModel([0.0, 3.0, 1.0])

    def pair(target: float, margin: float) -> list[PreferenceGroup]:
        return [PreferenceGroup((0,), ((1,), (2,)), (Choice(0, 1, target, margin),))]

    assert loss_of(model, pair(1.0, 0.5)).item() == pytest.approx(softplus(-1.5))  # 3 - 1 - 0.5
    assert loss_of(model, pair(0.75, 0.0)).item() == pytest.approx(0.75 * softplus(-2) + 0.25 * softplus(2))
    assert loss_of(model, pair(1.0, 0.0), 0.01).item() == pytest.approx(softplus(-2) + 0.01 * 16)  # (3 + 1)^2


GROUPS = [
    PreferenceGroup((5, 6), ((7,), (8, 9, 10), (7, 7)), (Choice(0, 1), Choice(2, 1), Choice(0, 2, 0.8))),
    PreferenceGroup((5,), ((11, 12), (13,)), (Choice(0, 1, 1.0, 0.5),)),
    PreferenceGroup((6, 6, 6), ((14,), (15,)), (Choice(1, 0),)),
]


def test_the_step_does_not_depend_on_the_split_into_micro_batches(tiny_model_path: Path) -> None:
    results, weights = [], []
    for max_tokens in (1, 12, 1000):
        model = ScalarModel.from_policy(tiny_model_path, "float32", seed=0)
        trained = TrainedModel("reward model", model, OPTIMIZER, total_steps=1)
        metrics = train_step(
            RewardModelTask(model, center_coef=0.1), trained, GROUPS, micro_batch_tokens=max_tokens, ranks=ALONE
        )
        results.append([metrics[name] for name in ("loss", "accuracy", "margin", "pairs", "grad_norm")])
        weights.append(model.head.weight.detach().clone())
    assert results[0] == pytest.approx(results[1], rel=1e-5)
    assert results[0] == pytest.approx(results[2], rel=1e-5)
    assert torch.allclose(weights[0], weights[2], atol=1e-6)
    assert results[0][3] == 5


def test_scores_come_in_the_order_of_the_completions_whatever_the_batches(tiny_model_path: Path) -> None:
    model = ScalarModel.from_policy(tiny_model_path, "float32", seed=0)
    expected = group_scores(model, GROUPS).detach().tolist()
    for max_tokens in (1, 12, 1000):
        assert score_groups(model, GROUPS, max_tokens=max_tokens, ranks=ALONE) == pytest.approx(expected, abs=1e-5)


def test_after_normalisation_the_training_completions_score_mean_0_and_std_1(tiny_model_path: Path) -> None:
    model = ScalarModel.from_policy(tiny_model_path, "float32", seed=0)
    mean, std = normalize(model, GROUPS, max_tokens=100, ranks=ALONE)
    scores = group_scores(model, GROUPS).detach()
    assert float(scores.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(scores.std(correction=0)) == pytest.approx(1.0, abs=1e-5)
    assert std > 0
    assert mean == model.mean


def test_a_model_that_says_nan_or_always_the_same_is_not_normalised(tiny_model_path: Path) -> None:
    model = ScalarModel.from_policy(tiny_model_path, "float32", seed=0)
    model.head.weight.data.zero_()
    with pytest.raises(RunError, match=r"standard deviation 0\.0: nothing was learned"):
        normalize(model, GROUPS, max_tokens=100, ranks=ALONE)
    model.head.weight.data.fill_(math.nan)
    with pytest.raises(RunError, match="scores 7 of 7 completions with NaN or infinity"):
        normalize(model, GROUPS, max_tokens=100, ranks=ALONE)


def test_training_learns_the_preference_and_saves_a_normalised_model_that_loads(
    tmp_path: Path, tiny_model_path: Path
) -> None:
    config = make_config(tmp_path, tiny_model_path)
    report = run_reward_model(config, console=QUIET)
    assert report is not None
    assert (report.num_train_pairs, report.num_heldout_pairs) == (30, 10)
    assert report.heldout_accuracy == 1.0
    assert report.heldout_accuracy_low == pytest.approx(10 / (10 + 1.959964**2))
    assert report.ensemble is None
    assert read_report(config.run_dir) == report
    assert (config.run_dir / "reward_model_report.png").read_bytes().startswith(b"\x89PNG")
    steps = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [step["step"] for step in steps] == list(range(1, 13))  # 3 epochs of 30 pairs, 8 a step: 4 steps each
    assert steps[-1]["loss"] < steps[0]["loss"]
    served = ScalarModel.load(config.run_dir / "model", "float32")
    assert (served.mean, served.std) == pytest.approx((report.members[0].reward_mean, report.members[0].reward_std))


def test_transformers_and_the_reward_service_read_the_saved_model_alike(tmp_path: Path, tiny_model_path: Path) -> None:
    config = make_config(tmp_path, tiny_model_path, training=TrainingConfig(examples_per_step=8))
    report = run_reward_model(config, console=QUIET)
    assert report is not None
    path = config.run_dir / "model"
    scorer = build_scorer(scorer_config(kind="model", path=str(path), dtype="float32", device="cpu"))
    ids = scorer.prepare(TextPair("say 1", "w1!"))
    classifier = AutoModelForSequenceClassification.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        raw = float(classifier(torch.tensor([ids])).logits)
    (member,) = report.members
    assert scorer.score([ids]) == pytest.approx([(raw - member.reward_mean) / member.reward_std], abs=1e-4)


def test_an_ensemble_trains_members_that_differ_and_reports_their_disagreement(
    tmp_path: Path, tiny_model_path: Path
) -> None:
    config = make_config(tmp_path, tiny_model_path, ensemble=EnsembleConfig(members=3))
    report = run_reward_model(config, console=QUIET)
    assert report is not None
    assert [member.model for member in report.members] == ["model-0", "model-1", "model-2"]
    assert not (config.run_dir / "model").exists()
    assert report.ensemble is not None
    assert report.ensemble.mean_disagreement > 0
    assert set(report.ensemble.accuracy_by_rule) == {"mean", "worst", "mean_minus_std"}
    assert sum(each.count for each in report.ensemble.accuracy_by_disagreement) == 10
    first_losses = set()
    for index in range(3):
        lines = (config.run_dir / f"member-{index}/metrics.jsonl").read_text().splitlines()
        assert len(lines) == 12
        first_losses.add(json.loads(lines[0])["loss"])
    assert len(first_losses) == 3
    paths = [str(config.run_dir / member.model) for member in report.members]
    scorer = build_scorer(scorer_config(kind="ensemble", paths=paths, dtype="float32", device="cpu"))
    (score,) = scorer.score([scorer.prepare(TextPair("say 1", "w1!"))])
    assert score.spread > 0


def test_bootstrap_members_learn_from_other_draws_of_the_same_examples(tmp_path: Path, tiny_model_path: Path) -> None:
    config = make_config(
        tmp_path,
        tiny_model_path,
        ensemble=EnsembleConfig(members=2, data="bootstrap"),
        training=TrainingConfig(examples_per_step=15),
    )
    assert run_reward_model(config, console=QUIET) is not None
    digests = {
        json.loads((config.run_dir / f"model-{index}/reward_model_training.json").read_text())["examples_digest"]
        for index in range(2)
    }
    assert len(digests) == 2


def read_weights(path: Path) -> bytes:
    return (path / "model.safetensors").read_bytes()


def test_a_stopped_ensemble_goes_on_to_the_same_bits_and_trains_no_member_twice(
    tmp_path: Path, tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections: dict[str, Any] = {
        "ensemble": EnsembleConfig(members=2),
        "checkpoint": RewardModelCheckpointConfig(every_steps=5),
    }
    config = make_config(tmp_path, tiny_model_path, **sections)
    undisturbed = config.model_copy(update={"run_dir": tmp_path / "undisturbed"})
    assert run_reward_model(undisturbed, console=QUIET) is not None

    class StopAtStep19(fit_module.StopSignal):  # steps 1 to 12 are the first member's
        asked = 0

        @property
        def number(self) -> int:
            StopAtStep19.asked += 1
            return signal.SIGINT if StopAtStep19.asked > 18 * len(NUMBERS) else 0

        @number.setter
        def number(self, value: int) -> None:
            pass

    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "StopSignal", StopAtStep19)
        with pytest.raises(StoppedError) as stopped:
            run_reward_model(config, console=QUIET)
    assert stopped.value.exit_code == 128 + signal.SIGINT
    assert (config.run_dir / "model-0").exists()
    assert not (config.run_dir / "model-1").exists()
    written = (config.run_dir / "model-0/model.safetensors").stat().st_mtime_ns
    with pytest.raises(ConfigError, match="it holds a trained model-0 already; go on with --resume"):
        run_reward_model(config, console=QUIET)
    report = run_reward_model(config, console=QUIET, resume=True)
    assert report is not None
    assert (config.run_dir / "model-0/model.safetensors").stat().st_mtime_ns == written
    for name in ("model-0", "model-1"):
        assert read_weights(config.run_dir / name) == read_weights(undisturbed.run_dir / name)
    again = run_reward_model(config, console=QUIET, resume=True)
    assert again is not None
    assert again.heldout == report.heldout


def test_resuming_with_other_data_or_another_seed_is_refused(tmp_path: Path, tiny_model_path: Path) -> None:
    config = make_config(tmp_path, tiny_model_path, training=TrainingConfig(examples_per_step=15))
    assert run_reward_model(config, console=QUIET) is not None
    other = config.model_copy(update={"training": TrainingConfig(examples_per_step=15, seed=1)})
    with pytest.raises(ConfigError, match="model was trained with seed 0, this run has 1"):
        run_reward_model(other, console=QUIET, resume=True)
    write_pairs(tmp_path, 41)
    with pytest.raises(ConfigError, match="model was trained with examples digest"):
        run_reward_model(config, console=QUIET, resume=True)
    (config.run_dir / "model/reward_model_training.json").unlink()
    with pytest.raises(ConfigError, match="model in it was not trained by this command"):
        run_reward_model(config, console=QUIET, resume=True)


def test_adapters_are_merged_into_the_saved_model(tmp_path: Path, tiny_model_path: Path) -> None:
    config = make_config(tmp_path, tiny_model_path, lora=LoraConfig(rank=4))
    report = run_reward_model(config, console=QUIET)
    assert report is not None
    assert report.heldout_accuracy == 1.0
    _, loading = AutoModelForSequenceClassification.from_pretrained(config.run_dir / "model", output_loading_info=True)
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]


def test_activation_checkpointing_changes_nothing_but_memory(tmp_path: Path, tiny_model_path: Path) -> None:
    config = make_config(tmp_path, tiny_model_path, training=TrainingConfig(examples_per_step=15))
    plain = run_reward_model(config, console=QUIET)
    model = config.model.model_copy(update={"activation_checkpointing": True})
    other = run_reward_model(config.model_copy(update={"run_dir": tmp_path / "other", "model": model}), console=QUIET)
    assert plain is not None
    assert other is not None
    assert other.train_loss == pytest.approx(plain.train_loss, rel=1e-5)


def test_rankings_are_trained_on_and_held_out_from_a_file_of_their_own(tmp_path: Path, tiny_model_path: Path) -> None:
    heldout = tmp_path / "heldout.jsonl"
    heldout.write_text("\n".join(json.dumps({"prompt": f"h {i}", "completions": ["a!", "b?", "c?"]}) for i in range(4)))
    data = PreferencesConfig(path=write_pairs(tmp_path), heldout_path=heldout)
    report = run_reward_model(make_config(tmp_path, tiny_model_path, data=data), console=QUIET)
    assert report is not None
    assert (report.num_train_pairs, report.num_heldout_pairs) == (40, 12)
    shared = PreferencesConfig(path=data.path, heldout_path=data.path)
    config = make_config(tmp_path, tiny_model_path, data=shared).model_copy(update={"run_dir": tmp_path / "second"})
    with pytest.raises(ConfigError, match=r"40 of its prompts are in data\.path too"):
        run_reward_model(config, console=QUIET)


def test_without_held_out_pairs_there_is_a_report_without_them(tmp_path: Path, tiny_model_path: Path) -> None:
    data = PreferencesConfig(path=write_pairs(tmp_path), heldout_fraction=0)
    report = run_reward_model(
        make_config(
            tmp_path, tiny_model_path, data=data, training=TrainingConfig(), ensemble=EnsembleConfig(members=2)
        ),
        console=QUIET,
    )
    assert report is not None
    assert (report.heldout_accuracy, report.heldout, report.ensemble) == (None, None, None)
    assert report.num_heldout_pairs == 0


def test_what_was_left_out_and_how_good_the_model_is_are_shown(
    tmp_path: Path, tiny_model_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config(tmp_path, tiny_model_path)
    with config.data.path.open("a") as file:
        file.write('\n{"prompt": "p", "chosen": "same", "rejected": "same"}')
        # data.max_tokens is 1024, but the model has 512 positions: the reward service could not score it.
        file.write(json.dumps({"prompt": "p", "chosen": "x" * 600, "rejected": "y"}).join(["\n", "\n"]))
    run_reward_model(config, console=Console(width=200))
    shown = capsys.readouterr().out
    assert "1 pairs left out: equal completions" in shown
    assert "1 pairs left out: too long (a side may have 512 tokens)" in shown
    assert "100.0%" in shown
    assert "expected calibration error" in shown


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path: Path, tiny_model_path: Path) -> None:
    config = make_config(tmp_path, tiny_model_path)
    broken = config.model_copy(update={"optimizer": OPTIMIZER.model_copy(update={"learning_rate": math.inf})})
    with pytest.raises(RunError, match=r"reward model stopped at step 2: the loss is nan"):
        run_reward_model(broken, console=QUIET)
    assert not (config.run_dir / "model").exists()


def test_an_ensemble_without_members_is_refused_by_field() -> None:
    with pytest.raises(ConfigError, match=r"ensemble\.members is '0'"):
        load_config(RewardModelRunConfig, prog="rlhf", argv=["--ensemble.members", "0"], env_prefix="RLHF_REWARD_MODEL")


def test_a_model_folder_that_is_missing_is_refused(tmp_path: Path) -> None:
    config = make_config(tmp_path, tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"model.path is '.*nowhere': no such directory"):
        run_reward_model(config, console=QUIET)


def test_members_of_one_seed_are_the_same_model_again(tmp_path: Path) -> None:
    model_path = make_tiny_model(tmp_path / "base", seed=3)
    training = TrainingConfig(examples_per_step=15, seed=5)
    first = make_config(tmp_path, model_path, training=training)
    second = first.model_copy(update={"run_dir": tmp_path / "second"})
    for config in (first, second):
        assert run_reward_model(config, console=QUIET) is not None
    assert read_weights(first.run_dir / "model") == read_weights(second.run_dir / "model")
