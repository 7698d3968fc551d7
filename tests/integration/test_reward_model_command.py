"""Reward-model training as a user runs it: the command line in processes of its own, on one rank and on two."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.forked import Command, finish

MODULE = "rlhf_cli.main"


def write_preferences(folder: Path) -> Path:
    path = folder / "preferences.jsonl"
    rankings = [{"prompt": f"rank {i}", "completions": [f"a{i % 5}!", f"bb{i % 3}?", "c"]} for i in range(10)]
    pairs = [{"prompt": f"say {i}", "chosen": f"w{i % 7}!", "rejected": f"w{i % 5}?", "label": 0.9} for i in range(15)]
    path.write_text("\n".join(map(json.dumps, [*rankings, *pairs])))
    return path


def arguments(folder: Path, model_path: Path, run: str, members: int = 2) -> list[str]:
    fields = {
        "run_dir": folder / run,
        "model.path": model_path,
        "model.dtype": "float32",
        "model.device": "cpu",
        "data.path": write_preferences(folder),
        "data.heldout_fraction": 0.25,
        "training.examples_per_step": 5,
        "training.micro_batch_tokens": 64,
        "ensemble.members": members,
        "optimizer.learning_rate": 3e-3,
    }
    return ["train", "reward-model", *(word for name, value in fields.items() for word in (f"--{name}", str(value)))]


def read_report(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "reward_model_report.json").read_text())


def test_sigterm_ends_a_reward_models_training_with_its_code(tmp_path: Path, tiny_model_path: Path) -> None:
    words = [*arguments(tmp_path, tiny_model_path, "run", members=1), "--training.epochs", "100000", "--resume"]
    words += ["--checkpoint.every_steps", "4"]
    with Command(MODULE, *words, output=tmp_path / "output.txt") as process:
        while not (tmp_path / "run/checkpoints/step-000004").exists():
            assert process.poll() is None, "the run ended too early"
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
    assert process.returncode == 128 + signal.SIGTERM
    num_steps = len((tmp_path / "run/metrics.jsonl").read_text().splitlines())
    assert max(path.name for path in (tmp_path / "run/checkpoints").iterdir()) == f"step-{num_steps:06d}"


def test_an_ensemble_is_trained_shown_and_not_trained_again(tmp_path: Path, tiny_model_path: Path) -> None:
    words = arguments(tmp_path, tiny_model_path, "run")
    done = finish(MODULE, *words, COLUMNS="200")
    assert done.returncode == 0, done.stderr
    for text in ("reward model 2 of 2 step 4/4", "their mean", "disagreement of the members", "saved ", "model-1"):
        assert text in done.stderr
    assert (tmp_path / "run/reward_model_report.png").is_file()
    again = finish(MODULE, *words, COLUMNS="200")
    assert again.returncode == 2
    assert "it holds a trained model-0 already; go on with --resume" in again.stderr
    resumed = finish(MODULE, *words, "--resume", COLUMNS="200")
    assert resumed.returncode == 0, resumed.stderr
    assert "reward model 1 of 2: finished already" in resumed.stderr


@pytest.mark.exhaustive
def test_two_ranks_train_and_measure_what_one_does(tmp_path: Path, tiny_model_path: Path) -> None:
    one = finish(MODULE, *arguments(tmp_path, tiny_model_path, "one", 1))
    assert one.returncode == 0, one.stderr
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", MODULE]
    words = [*launcher, *arguments(tmp_path, tiny_model_path, "two", 1)]
    two = subprocess.run(words, capture_output=True, text=True, check=False)
    assert two.returncode == 0, two.stderr
    expected, found = (load_file(tmp_path / run / "model/model.safetensors") for run in ("one", "two"))
    assert list(found) == list(expected)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], atol=1e-4, rtol=1e-4)
    reports = [read_report(tmp_path / run) for run in ("one", "two")]
    for name in ("train_loss", "heldout_accuracy", "calibration_error", "length_correlation"):
        assert reports[1][name] == pytest.approx(reports[0][name], abs=1e-3), name
    assert reports[1]["heldout"]["scores"] == pytest.approx(reports[0]["heldout"]["scores"], abs=1e-2)
