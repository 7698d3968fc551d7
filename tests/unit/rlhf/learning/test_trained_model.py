"""A model in training on one rank: its weights as a checkpoint, and its state on disk. Many ranks: test_ranks.py."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from rlhf.errors import ConfigError
from rlhf.learning.batch import collate
from rlhf.learning.config import OptimizerConfig
from rlhf.learning.trained_model import TrainedModel
from rlhf.models.loading import load_policy, load_tokenizer
from rlhf.models.policy_model import PolicyModel
from rlhf.models.scalar_model import ScalarModel, sequence_scores
from rlhf.models.sequences import pad_sequences
from rlhf.models.weights import checkpoint_tensors
from tests.support.tiny_model import make_tiny_model
from tests.unit.rlhf.learning.test_batch import make_sample

SEQUENCES = pad_sequences([[5, 6, 7], [8]], [[9, 10], [11, 12, 13]])


def make_policy(path: Path, dtype: Any = "float32") -> TrainedModel:
    torch.manual_seed(0)
    model = load_policy(path, dtype=dtype)
    head = nn.Linear(64, 1, bias=False, dtype=model.dtype)
    return TrainedModel("policy", PolicyModel(model, head), OptimizerConfig(learning_rate=1e-2), total_steps=9)


def train(model: TrainedModel, steps: int) -> None:
    for _ in range(steps):
        logprobs, _, values = model.module(SEQUENCES, 1.0, with_values=True)
        (values.square().sum() - logprobs.sum()).backward()
        model.step()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_goes_on_from_its_state_bit_for_bit(tmp_path: Path, tiny_model_path: Path, dtype: str) -> None:
    model = make_policy(tiny_model_path, dtype)
    train(model, 2)
    model.save_state(tmp_path)
    train(model, 2)
    again = make_policy(tiny_model_path, dtype)
    again.load_state(tmp_path)
    assert again.optimizer.num_steps == 2
    train(again, 2)
    expected, found = model.module.state_dict(), again.module.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    states = model.optimizer.state_tensors(), again.optimizer.state_tensors()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert model.optimizer.adam_steps() == again.optimizer.adam_steps()


def test_a_model_that_has_taken_no_step_has_a_state_too(tmp_path: Path, tiny_model_path: Path) -> None:
    make_policy(tiny_model_path).save_state(tmp_path)
    again = make_policy(tiny_model_path)
    train(again, 1)
    again.load_state(tmp_path)  # is as at the start, moments included
    assert again.optimizer.num_steps == 0
    assert again.optimizer.adam_steps() == {}
    original = dict(checkpoint_tensors(load_policy(tiny_model_path, dtype="float32")))
    assert all(torch.equal(tensor, original[name]) for name, tensor in again.weights())


def test_nothing_on_disk_is_pickled(tmp_path: Path, tiny_model_path: Path) -> None:
    model = make_policy(tiny_model_path)
    train(model, 1)
    model.save_state(tmp_path)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors"]


def test_the_state_of_another_model_is_refused_by_its_path(tmp_path: Path, tiny_model_path: Path) -> None:
    make_policy(tiny_model_path).save_state(tmp_path / "state")
    other = TrainedModel("policy", load_policy(tiny_model_path, dtype="float32"), OptimizerConfig(), total_steps=1)
    with pytest.raises(ConfigError, match=r"state: the policy optimizer's state is of another model: .*; resume with"):
        other.load_state(tmp_path / "state")


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_policy_loads_in_transformers(tmp_path: Path, tied: bool) -> None:
    path = make_tiny_model(tmp_path / "start", tie_word_embeddings=tied)
    model = make_policy(path)
    train(model, 1)
    model.save_weights(tmp_path / "final", load_tokenizer(path))
    again = load_policy(tmp_path / "final", dtype="float32")
    ids = collate([make_sample([5], [6, 7], 0.0)]).sequences.input_ids
    with torch.no_grad():
        assert torch.equal(model.module.model(ids).logits, again(ids).logits)
    assert load_tokenizer(tmp_path / "final").get_vocab() == load_tokenizer(path).get_vocab()
    saved = dict(checkpoint_tensors(again))
    pushed = dict(model.weights())
    assert pushed.keys() == saved.keys()  # without the value head
    assert all(torch.equal(pushed[name], saved[name]) for name in saved)


def test_a_scalar_model_has_the_names_of_its_checkpoint(tmp_path: Path, tiny_reward_path: Path) -> None:
    module = ScalarModel.load(tiny_reward_path, "float32")
    module.set_normalization(0.5, 3.0)
    model = TrainedModel("critic", module, OptimizerConfig(), total_steps=1)
    model.save_weights(tmp_path, load_tokenizer(tiny_reward_path))
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path).state_dict()
    weights = dict(model.weights())
    assert weights.keys() == classifier.keys()
    assert all(torch.equal(weights[name], classifier[name]) for name in weights)
    again = ScalarModel.load(tmp_path, "float32")
    assert torch.equal(sequence_scores(again, SEQUENCES), sequence_scores(module, SEQUENCES))


def test_a_module_of_another_kind_is_a_programming_error() -> None:
    with pytest.raises(TypeError, match="Linear is no PreTrainedModel"):
        next(TrainedModel("linear", nn.Linear(1, 1), OptimizerConfig(), total_steps=1).weights())
