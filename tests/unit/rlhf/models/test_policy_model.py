"""The policy as one module: log-probabilities, entropies and values from one forward pass."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from rlhf.models.loading import enable_activation_checkpointing, load_policy
from rlhf.models.policy_model import PolicyModel, completion_logprobs, score_tokens
from rlhf.models.sequences import PaddedSequences, pad_sequences

PROMPTS = [[5, 6, 7], [8]]
COMPLETIONS = [[20, 21], [22, 23, 24, 25]]


@pytest.fixture
def model(tiny_model_path: Path) -> PreTrainedModel:
    return load_policy(tiny_model_path, dtype="float32")


@pytest.fixture
def sequences() -> PaddedSequences:
    return pad_sequences(PROMPTS, COMPLETIONS)


def value_head() -> nn.Linear:
    """One that adds up the first two hidden numbers, plus 3."""
    head = nn.Linear(64, 1)
    with torch.no_grad():
        head.weight.zero_()[0, :2] = 1.0
        head.bias.fill_(3.0)
    return head


@torch.no_grad()
def test_log_probabilities_are_those_of_the_model_itself(model: PreTrainedModel, sequences: PaddedSequences):
    plain = score_tokens(model, sequences, 0.7, with_entropy=True)[:2]
    wrapped = PolicyModel(model)(sequences, 0.7, with_entropy=True)[:2]
    assert all(torch.equal(*pair) for pair in zip(plain, wrapped, strict=True))
    assert torch.equal(completion_logprobs(PolicyModel(model), sequences, 0.7), plain[0])


@torch.no_grad()
def test_values_come_from_the_hidden_state_before_each_token(model: PreTrainedModel, sequences: PaddedSequences):
    policy_model = PolicyModel(model, value_head())
    logprobs, entropies, values = policy_model(sequences, 0.7, with_entropy=True, with_values=True)
    torch.testing.assert_close((logprobs, entropies), score_tokens(model, sequences, 0.7, with_entropy=True)[:2])
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        hidden = model.base_model(input_ids=torch.tensor([prompt + completion])).last_hidden_state[0]
        expected = hidden[len(prompt) - 1 : -1, :2].sum(-1) + 3.0
        torch.testing.assert_close(values[row, : len(completion)], expected)
    assert values[0, 2:].tolist() == [0.0, 0.0]


def test_every_parameter_gets_a_gradient_through_the_modules_own_call(
    model: PreTrainedModel, sequences: PaddedSequences
):
    policy_model = PolicyModel(model, value_head())
    calls = []
    policy_model.register_forward_hook(lambda *_: calls.append(True))
    logprobs, _, values = policy_model(sequences, 1.0, with_entropy=True, with_values=True)
    (logprobs.sum() + values.sum()).backward()
    assert calls == [True]
    assert all(parameter.grad is not None for parameter in policy_model.parameters())


def test_values_without_a_head_are_refused(model: PreTrainedModel, sequences: PaddedSequences):
    with pytest.raises(ValueError, match="no value_head"):
        PolicyModel(model)(sequences, 1.0, with_values=True)


def test_recomputed_layers_give_the_same_gradients_and_keep_less(model: PreTrainedModel, sequences: PaddedSequences):
    kept: list[int] = []
    gradients = []
    for recomputing in (False, True):
        policy_model = PolicyModel(model).eval()
        if recomputing:
            enable_activation_checkpointing(policy_model)
        policy_model.zero_grad()
        sizes: list[int] = []

        def keep(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = completion_logprobs(policy_model, sequences, 1.0).sum()
        loss.backward()
        kept.append(sum(sizes))
        gradients.append([parameter.grad.clone() for parameter in policy_model.parameters()])
    assert kept[1] < kept[0] / 2
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))
