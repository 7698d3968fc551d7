"""Adapters: what is trained, what stays, and what is pushed and exported."""

import builtins
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from rlhf.errors import ConfigError
from rlhf.learning.config import LoraConfig, OptimizerConfig
from rlhf.learning.lora import merge_adapters
from rlhf.learning.trained_model import TrainedModel
from rlhf.models.loading import load_policy, load_tokenizer
from rlhf.models.policy_model import PolicyModel, completion_logprobs
from rlhf.models.scalar_model import ScalarModel, sequence_scores
from rlhf.models.sequences import pad_sequences
from rlhf.models.weights import checkpoint_tensors
from tests.support.tiny_model import make_tiny_model

SEQUENCES = pad_sequences([[5, 6, 7], [8]], [[9, 10], [11, 12, 13]])


def make_policy(path: Path, dtype: Any = "float32", **lora: Any) -> TrainedModel:
    module = PolicyModel(load_policy(path, dtype=dtype))
    config = OptimizerConfig(learning_rate=1e-2)
    return TrainedModel("policy", module, config, total_steps=10, lora=LoraConfig(rank=4, alpha=8.0, **lora))


def train(model: TrainedModel, steps: int = 3) -> None:
    for _ in range(steps):
        logprobs_of(model).sum().neg().backward()
        model.step()


def logprobs_of(model: TrainedModel) -> Tensor:
    return completion_logprobs(model.module, SEQUENCES, 1.0)


def copy_base(model: TrainedModel) -> dict[str, Tensor]:
    return {name: each.clone() for name, each in model.module.named_parameters() if "lora_" not in name}


def test_an_adapter_is_added_to_the_weight_it_adapts() -> None:
    tensors = {
        "q.base_layer.weight": torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        "q.lora_A.default.weight": torch.tensor([[1.0, 2.0]]),
        "q.lora_B.default.weight": torch.tensor([[3.0], [0.0]]),
        "q.base_layer.bias": torch.tensor([7.0, 7.0]),
        "norm.weight": torch.tensor([5.0]),
    }
    merged = merge_adapters(tensors, scale=0.5)
    assert list(merged) == ["q.weight", "q.bias", "norm.weight"]
    # B A = [[3, 6], [0, 0]]; half of it is added to the identity.
    assert merged["q.weight"].tolist() == [[2.5, 3.0], [0.0, 1.0]]
    assert tensors["q.base_layer.weight"].tolist() == [[1.0, 0.0], [0.0, 1.0]]


def test_fresh_adapters_change_nothing(tiny_model_path: Path) -> None:
    expected = completion_logprobs(load_policy(tiny_model_path, dtype="float32"), SEQUENCES, 1.0)
    model = make_policy(tiny_model_path)
    assert torch.equal(logprobs_of(model), expected)
    original = dict(checkpoint_tensors(load_policy(tiny_model_path, dtype="float32")))
    weights = dict(model.weights())
    assert weights.keys() == original.keys()
    assert all(torch.equal(weights[name], original[name]) for name in original)


def test_the_exported_policy_is_the_adapted_one_and_the_base_stays(tiny_model_path: Path, tmp_path: Path) -> None:
    model = make_policy(tiny_model_path)
    base = copy_base(model)
    before = logprobs_of(model).detach()
    train(model)
    adapted = logprobs_of(model).detach()
    assert (adapted - before).abs().max() > 0.1
    model.save_weights(tmp_path, load_tokenizer(tiny_model_path))
    exported = completion_logprobs(load_policy(tmp_path, dtype="float32"), SEQUENCES, 1.0)
    torch.testing.assert_close(exported, adapted, atol=1e-5, rtol=1e-5)
    pushed = dict(model.weights())
    for name, tensor in checkpoint_tensors(load_policy(tmp_path, dtype="float32")):
        assert torch.equal(pushed[name], tensor)
    assert copy_base(model).keys() == base.keys()
    assert all(torch.equal(each, base[name]) for name, each in copy_base(model).items())


def test_a_merged_bfloat16_policy_is_served_in_bfloat16(tiny_model_path: Path) -> None:
    model = make_policy(tiny_model_path, "bfloat16")
    train(model)
    assert {tensor.dtype for _, tensor in model.weights()} == {torch.bfloat16}


def test_an_adapted_reward_model_trains_its_head_too(tiny_reward_path: Path, tmp_path: Path) -> None:
    module = ScalarModel.load(tiny_reward_path, "float32")
    module.set_normalization(1.5, 2.0)
    head = module.head.weight.detach().clone()
    model = TrainedModel("critic", module, OptimizerConfig(learning_rate=1e-2), total_steps=9, lora=LoraConfig(rank=2))
    for _ in range(2):
        sequence_scores(module, SEQUENCES).sum().backward()
        model.step()
    assert not torch.equal(module.head.weight, head)
    model.save_weights(tmp_path, load_tokenizer(tiny_reward_path))
    exported = ScalarModel.load(tmp_path, "float32")
    assert (exported.mean, exported.std) == (1.5, 2.0)
    torch.testing.assert_close(sequence_scores(exported, SEQUENCES), sequence_scores(module, SEQUENCES))


def test_adapters_go_on_from_a_checkpoint_bit_for_bit(tiny_model_path: Path, tmp_path: Path) -> None:
    model = make_policy(tiny_model_path)
    train(model, steps=2)
    model.save_state(tmp_path)
    train(model, steps=1)
    again = make_policy(tiny_model_path)
    again.load_state(tmp_path)
    train(again, steps=1)
    expected, found = dict(model.weights()), dict(again.weights())
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_state_of_other_adapters_is_refused(tiny_model_path: Path, tmp_path: Path) -> None:
    make_policy(tiny_model_path).save_state(tmp_path)
    other = make_policy(tiny_model_path, target_modules=("q_proj",))
    with pytest.raises(ConfigError, match=r"state is of another model: .*lora_.* has shape .* there, None here"):
        other.load_state(tmp_path)


def test_adapters_for_another_base_are_refused(tiny_model_path: Path, tmp_path: Path) -> None:
    make_policy(tiny_model_path).save_state(tmp_path / "state")
    other = make_policy(make_tiny_model(tmp_path / "other", seed=5))
    with pytest.raises(ConfigError, match=r"the frozen weights have the digest .*, those it was saved with"):
        other.load_state(tmp_path / "state")


@pytest.mark.parametrize("target", ["query", "embed_tokens", "lm_head", "input_layernorm"])
def test_a_target_that_is_no_linear_layer_is_refused(tiny_model_path: Path, target: str) -> None:
    with pytest.raises(ConfigError, match=rf"lora.target_modules is \['{target}'\]"):
        make_policy(tiny_model_path, target_modules=(target,))


def test_dropout_is_refused() -> None:
    with pytest.raises(ValidationError):
        LoraConfig(dropout=0.1)


def test_without_peft_the_user_hears_what_to_install(tiny_model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def no_peft(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name == "peft":
            raise ImportError(name)
        return real_import(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", no_peft)
    with pytest.raises(ConfigError, match=r"peft is not installed: pip install 'rlhf-services\[lora\]'"):
        make_policy(tiny_model_path)
