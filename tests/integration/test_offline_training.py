"""SFT and DPO as a user runs them: the command line in a process of its own, and the real reference service."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.request import urlopen

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rlhf.errors import ConfigError
from services.reward.scorers.config import scorer_config
from services.trainer.config.offline import (
    DpoConfig,
    DpoDataConfig,
    DpoOptimizerConfig,
    DpoRunConfig,
    DpoServicesConfig,
    FitConfig,
)
from services.trainer.config.sections import CheckpointConfig, ModelConfig
from services.trainer.offline.dpo.train import run_dpo
from tests.support.forked import Command, finish
from tests.support.ports import free_port
from tests.support.real_services import serving

QUIET = Console(quiet=True)
RULE = scorer_config(kind="length")


def write_jsonl(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


MODULE = "rlhf_cli.main"


def sft_arguments(folder: Path, model_path: Path, run: str) -> list[str]:
    rows = [{"prompt": f"say {i}", "completion": f"word {i % 3}!"} for i in range(12)]
    fields = {
        "run_dir": folder / run,
        "model.path": model_path,
        "model.dtype": "float32",
        "model.device": "cpu",
        "data.path": write_jsonl(folder / "chats.jsonl", rows),
        "training.epochs": 20,
        "training.examples_per_step": 4,
        "training.micro_batch_tokens": 40,
        "checkpoint.every_steps": 5,
        "optimizer.learning_rate": 3e-3,
    }
    flags = [word for name, value in fields.items() for word in (f"--{name}", str(value))]
    return ["train", "sft", *flags]


def wait_for(path: Path, process: Command) -> None:
    while not path.exists():
        assert process.poll() is None, "the run ended too early"
        time.sleep(0.005)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory, tiny_model_path: Path) -> Path:
    """Folder of a fine-tuning by one rank that nothing disturbed."""
    folder = tmp_path_factory.mktemp("sft")
    done = finish(MODULE, *sft_arguments(folder, tiny_model_path, "whole"))
    assert done.returncode == 0, done.stderr
    assert "SFT step 60/60" in done.stderr
    return folder / "whole"


def test_sft_that_is_killed_resumes_to_the_bits_of_a_run_that_was_not(
    tmp_path: Path, tiny_model_path: Path, whole_run: Path
) -> None:
    AutoModelForCausalLM.from_pretrained(whole_run / "final")
    command = sft_arguments(tmp_path, tiny_model_path, "killed")
    with Command(MODULE, *command, output=tmp_path / "output.txt") as process:
        wait_for(tmp_path / "killed/checkpoints/step-000010", process)
        process.send_signal(signal.SIGSTOP)
        second = finish(MODULE, *command)
        process.kill()
    assert second.returncode == 2
    assert "another trainer is running in it" in second.stderr
    resumed = finish(MODULE, *command, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after step" in resumed.stderr
    one, other = (load_file(run / "final/model.safetensors") for run in (whole_run, tmp_path / "killed"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    rows = [(run / "metrics.jsonl").read_text().splitlines() for run in (whole_run, tmp_path / "killed")]
    losses = [[json.loads(row)["loss"] for row in each] for each in rows]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 60


def test_sigterm_leaves_a_checkpoint_and_a_code_that_says_the_work_is_not_done(
    tmp_path: Path, tiny_model_path: Path
) -> None:
    command = [*sft_arguments(tmp_path, tiny_model_path, "evicted"), "--resume"]  # as a Job always does
    run_dir = tmp_path / "evicted"
    port = free_port()
    endless = [*command, "--training.epochs", "100000", "--server.metrics_port", str(port)]
    with Command(MODULE, *endless, output=tmp_path / "output.txt") as process:
        wait_for(run_dir / "checkpoints/step-000005", process)
        page = urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
        process.send_signal(signal.SIGTERM)
    assert 'rlhf_trainer_run_info{algorithm="SFT",run="evicted"} 1.0' in page
    assert "rlhf_trainer_perplexity " in page
    assert process.returncode == 128 + signal.SIGTERM
    newest = max(path.name for path in (run_dir / "checkpoints").iterdir())
    assert newest == f"step-{len((run_dir / 'metrics.jsonl').read_text().splitlines()):06d}"
    assert not (run_dir / "final").exists()


@pytest.mark.exhaustive
def test_two_ranks_learn_what_one_does_and_resume_on_one(
    tmp_path: Path, tiny_model_path: Path, whole_run: Path
) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = sft_arguments(tmp_path, tiny_model_path, "two")
    two = subprocess.run([*launcher, "-m", MODULE, *command], capture_output=True, text=True, check=False)
    assert two.returncode == 0, two.stderr
    assert two.stderr.count("SFT step 60/60") == 1
    assert_equal_runs(whole_run, tmp_path / "two")
    # The last checkpoint is lost; one rank goes on from the one that two ranks wrote.
    (tmp_path / "two/checkpoints/step-000060/state.json").unlink()
    resumed = finish(MODULE, *command, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming after step 55" in resumed.stderr
    assert_equal_runs(whole_run, tmp_path / "two")


def assert_equal_runs(expected: Path, found: Path) -> None:
    """Equal up to the rounding of sums in another order."""
    weights = [load_file(run / "final/model.safetensors") for run in (expected, found)]
    assert weights[0].keys() == weights[1].keys()
    for name in weights[0]:
        torch.testing.assert_close(weights[1][name], weights[0][name], atol=1e-3, rtol=1e-3)
    losses = [
        [json.loads(row)["loss"] for row in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (expected, found)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3, abs=1e-4)


def make_dpo_config(folder: Path, model_path: Path, target: str, variant: str, run: str) -> DpoRunConfig:
    rows = [{"prompt": f"say {i}", "chosen": f"w{i % 7}!", "rejected": f"w{i % 5}?"} for i in range(20)]
    return DpoRunConfig(
        run_dir=folder / run,
        model=ModelConfig(path=model_path, dtype="float32", device="cpu"),
        data=DpoDataConfig(path=str(write_jsonl(folder / "pairs.jsonl", rows)), heldout_fraction=0.2),
        training=FitConfig(epochs=4, examples_per_step=8),
        optimizer=DpoOptimizerConfig(learning_rate=1e-3, warmup_steps=0),
        checkpoint=CheckpointConfig(every_steps=2),
        dpo=DpoConfig.model_validate({"variant": variant}),
        services=DpoServicesConfig(reference_target=target, wait_for_services_seconds=5.0),
    )


def test_dpo_starts_at_the_reference_learns_and_keeps_the_reference_log_probabilities(
    tmp_path: Path, tiny_model_path: Path
) -> None:
    with serving(tiny_model_path, RULE) as targets:
        config = make_dpo_config(tmp_path, tiny_model_path, targets.reference, "sigmoid", "run")
        assert run_dpo(config, resume=False, console=QUIET) == 0
    rows = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    # The policy is the reference yet: every implied reward is 0, and the loss is log 2.
    assert rows[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert rows[0]["margin"] == pytest.approx(0.0, abs=1e-3)
    assert rows[-1]["heldout_accuracy"] == 1.0
    assert rows[-1]["heldout_margin"] > 0
    AutoModelForCausalLM.from_pretrained(config.run_dir / "final")
    (kept,) = tmp_path.glob("pairs.jsonl.reference-*.safetensors")
    # The service has gone: a run that names the kept version needs it no more, and leads to the same weights.
    version = read_version(kept)
    again = make_dpo_config(tmp_path, tiny_model_path, "127.0.0.1:1", "sigmoid", "again")
    again = again.model_copy(update={"services": again.services.model_copy(update={"reference_version": version})})
    assert run_dpo(again, resume=False, console=QUIET) == 0
    one, other = (load_file(each.run_dir / "final/model.safetensors") for each in (config, again))
    assert all(torch.equal(one[name], other[name]) for name in one)


def read_version(path: Path) -> str:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as reader:
        version: str = reader.metadata()["reference_version"]
    return version


def test_kto_learns_from_labelled_completions_and_refuses_rows_without_a_label(
    tmp_path: Path, tiny_model_path: Path
) -> None:
    rows = [{"prompt": f"say {i // 2}", "completion": f"w{i % 7}{'!?'[i % 2]}", "label": i % 2 == 0} for i in range(20)]
    with serving(tiny_model_path, RULE) as targets:
        config = make_dpo_config(tmp_path, tiny_model_path, targets.reference, "kto", "run")
        write_jsonl(tmp_path / "pairs.jsonl", rows)
        assert run_dpo(config, resume=False, console=QUIET) == 0
    metrics = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["heldout_margin"] > 0
    assert "heldout_kl" in metrics[-1]
    write_jsonl(tmp_path / "pairs.jsonl", [rows[0], {**rows[1], "label": "good"}])
    with pytest.raises(ConfigError, match=r"pairs.jsonl:2: \"label\" is 'good'; it must be true for a good completion"):
        run_dpo(config.model_copy(update={"run_dir": tmp_path / "bad"}), resume=False, console=QUIET)


@pytest.mark.parametrize("variant", ["simpo", "orpo"])
def test_variants_without_a_reference_call_no_service(tmp_path: Path, tiny_model_path: Path, variant: str) -> None:
    config = make_dpo_config(tmp_path, tiny_model_path, "127.0.0.1:1", variant, "run")
    assert run_dpo(config, resume=False, console=QUIET) == 0
    rows = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["margin"] > rows[0]["margin"]
