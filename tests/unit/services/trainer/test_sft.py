"""Supervised fine-tuning on the tiny model: the loss by hand, its independence of splits, what a run leaves, resume."""

import json
import math
from io import StringIO
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf.data.chat import ChatExample
from rlhf.errors import ConfigError
from rlhf.learning.config import LoraConfig
from rlhf.learning.ranks import Ranks
from rlhf.learning.trained_model import TrainedModel
from rlhf.models.loading import load_policy
from rlhf.models.policy_model import PolicyModel
from services.trainer.config.offline import (
    FitConfig,
    OfflineOptimizerConfig,
    SftDataConfig,
    SftRunConfig,
)
from services.trainer.config.sections import CheckpointConfig, ModelConfig
from services.trainer.offline.fit import train_step
from services.trainer.offline.sft import SftTask, run_sft

QUIET = Console(quiet=True)
OPTIMIZER = OfflineOptimizerConfig(learning_rate=3e-3, warmup_steps=0)
EXAMPLES = [
    ChatExample((5, 6, 7, 8), (False, False, True, True)),
    # The user speaks again between two answers.
    ChatExample((5, 9, 10, 11, 12, 13), (False, True, False, False, True, True)),
    ChatExample((8, 14), (False, True)),
]


def mean_nll_by_hand(path: Path, examples: list[ChatExample]) -> float:
    """The mean over trained tokens, one example and one token after the other, in float64."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64, attn_implementation="eager")
    total, count = 0.0, 0
    for example in examples:
        with torch.no_grad():
            logits = model(torch.tensor([example.token_ids])).logits[0]
        for position, (token, trained) in enumerate(zip(example.token_ids, example.trained, strict=True)):
            if trained:
                # The logits at a position predict the token after it.
                row = logits[position - 1]
                total -= float(row[token] - torch.logsumexp(row, dim=0))
                count += 1
    return total / count


def take_step(path: Path, micro_batch_tokens: int) -> dict[str, float]:
    policy = PolicyModel(load_policy(path, dtype="float32"))
    trained = TrainedModel("policy", policy, OPTIMIZER, total_steps=1)
    return train_step(SftTask(policy), trained, EXAMPLES, micro_batch_tokens=micro_batch_tokens, ranks=Ranks())


def test_the_loss_is_the_mean_over_the_assistants_tokens_of_the_whole_batch(tiny_model_path: Path) -> None:
    metrics = take_step(tiny_model_path, 1000)
    expected = mean_nll_by_hand(tiny_model_path, EXAMPLES)
    assert metrics["loss"] == pytest.approx(expected, rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(math.exp(expected), rel=1e-4)
    assert (metrics["trained_tokens"], metrics["tokens"]) == (6, 12)


def test_the_step_does_not_depend_on_the_split_into_micro_batches(tiny_model_path: Path) -> None:
    results = [take_step(tiny_model_path, max_tokens) for max_tokens in (1, 8, 1000)]
    for metrics in results[1:]:
        assert metrics["loss"] == pytest.approx(results[0]["loss"], rel=1e-5)
        assert metrics["grad_norm"] == pytest.approx(results[0]["grad_norm"], rel=1e-5)


def make_config(folder: Path, model_path: Path, name: str = "run", **changes: object) -> SftRunConfig:
    path = folder / "chats.jsonl"
    rows = [{"prompt": f"say {i}", "completion": f"word {i % 3}!"} for i in range(20)]
    path.write_text("\n".join(map(json.dumps, rows)))
    sections: dict[str, object] = {
        "run_dir": folder / name,
        "model": ModelConfig(path=model_path, dtype="float32", device="cpu"),
        "data": SftDataConfig(path=str(path), heldout_fraction=0.2),
        "training": FitConfig(epochs=2, examples_per_step=6, micro_batch_tokens=64, validate_every_steps=3),
        "optimizer": OPTIMIZER,
        "checkpoint": CheckpointConfig(every_steps=2),
        **changes,
    }
    return SftRunConfig.model_validate(sections)


def read_metrics(run_dir: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if "second" not in name} for row in rows]


def test_a_run_learns_and_leaves_a_checkpoint_that_transformers_loads(tmp_path: Path, tiny_model_path: Path) -> None:
    config = make_config(tmp_path, tiny_model_path)
    assert run_sft(config, resume=False, console=QUIET) == 0
    rows = read_metrics(config.run_dir)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]  # 16 examples, 6 a step, twice
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert [row["step"] for row in rows if "heldout_loss" in row] == [3, 6]
    assert rows[-1]["heldout_loss"] < rows[2]["heldout_loss"]
    model = AutoModelForCausalLM.from_pretrained(config.run_dir / "final")
    assert model.dtype == torch.float32
    assert AutoTokenizer.from_pretrained(config.run_dir / "final").chat_template
    with pytest.raises(ConfigError, match="it holds a trained model already; choose another directory"):
        run_sft(config, resume=False, console=QUIET)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_that_lost_its_last_steps_resumes_to_the_same_bits(
    tmp_path: Path, tiny_model_path: Path, dtype: str
) -> None:
    model = ModelConfig(path=tiny_model_path, dtype=dtype, device="cpu")
    whole, cut = (make_config(tmp_path, tiny_model_path, name, model=model) for name in ("whole", "cut"))
    for config in (whole, cut):
        run_sft(config, resume=False, console=QUIET)
    # As if it had been killed in step 6: no final, no later checkpoint, a torn line.
    for path in (cut.run_dir / "checkpoints/step-000006/state.json", *(cut.run_dir / "final").iterdir()):
        path.unlink()
    (cut.run_dir / "final").rmdir()
    with (cut.run_dir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    assert run_sft(cut, resume=True, console=QUIET) == 0
    assert read_metrics(cut.run_dir) == read_metrics(whole.run_dir)
    weights = [load_file(config.run_dir / "final/model.safetensors") for config in (whole, cut)]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_resumed_run_says_which_settings_are_not_the_checkpoints(tmp_path: Path, tiny_model_path: Path) -> None:
    config = make_config(tmp_path, tiny_model_path)
    run_sft(config, resume=False, console=QUIET)
    output = StringIO()
    longer = config.model_copy(update={"training": config.training.model_copy(update={"epochs": 3})})
    run_sft(longer, resume=True, console=Console(file=output, width=200))
    assert (
        "the configuration is not that of the checkpoint: training.epochs 2 -> 3; the new values" in output.getvalue()
    )
    assert len(read_metrics(config.run_dir)) == 9


def test_adapters_are_trained_and_merged_into_the_final_policy(tmp_path: Path, tiny_model_path: Path) -> None:
    config = make_config(tmp_path, tiny_model_path, lora=LoraConfig(rank=4, alpha=8.0))
    run_sft(config, resume=False, console=QUIET)
    rows = read_metrics(config.run_dir)
    assert rows[-1]["loss"] < rows[0]["loss"]
    before, after = (load_file(path / "model.safetensors") for path in (tiny_model_path, config.run_dir / "final"))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if "_proj" in name}


def test_a_model_or_data_that_is_not_there_is_named(tmp_path: Path, tiny_model_path: Path) -> None:
    away = make_config(tmp_path, tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"model.path is '.*nowhere': no such directory"):
        run_sft(away, resume=False, console=QUIET)
    no_data = make_config(tmp_path, tiny_model_path, data=SftDataConfig(path=str(tmp_path / "no.jsonl")))
    with pytest.raises(ConfigError, match=r"data.path is '.*no.jsonl': no such file"):
        run_sft(no_data, resume=False, console=QUIET)


def test_activations_that_are_computed_again_change_nothing(tmp_path: Path, tiny_model_path: Path) -> None:
    model = ModelConfig(path=tiny_model_path, dtype="float32", device="cpu", activation_checkpointing=True)
    configs = (
        make_config(tmp_path, tiny_model_path, "kept"),
        make_config(tmp_path, tiny_model_path, "again", model=model),
    )
    for config in configs:
        run_sft(config, resume=False, console=QUIET)
    kept, again = (read_metrics(config.run_dir) for config in configs)
    assert [row["loss"] for row in again] == pytest.approx([row["loss"] for row in kept], rel=1e-5)
