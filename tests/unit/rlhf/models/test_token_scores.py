"""Forward passes: padding is invisible, positions are right, and gradients flow where they must."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle as Handle
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from rlhf.models.loading import load_policy
from rlhf.models.policy_model import completion_logprobs, score_tokens
from rlhf.models.scalar_model import ScalarModel, completion_values, sequence_scores
from rlhf.models.sequences import PaddedSequences, pad_sequences

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
COMPLETIONS = [[20, 21], [22, 23, 24, 25, 26, 27], [28]]
TEMPERATURE = 0.7


@pytest.fixture(scope="module")
def policy(tiny_model_path: Path) -> PreTrainedModel:
    return load_policy(tiny_model_path, dtype="float32")


@pytest.fixture(scope="module")
def scalar_model(tiny_reward_path: Path) -> ScalarModel:
    return ScalarModel.load(tiny_reward_path, "float32")


@pytest.fixture
def sequences() -> PaddedSequences:
    return pad_sequences(PROMPTS, COMPLETIONS)


def whole_logits(policy: PreTrainedModel, prompt: list[int], completion: list[int]) -> Tensor:
    """The model's own logits of one unpadded sequence that predict its completion, [T, V]."""
    logits = policy(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0]
    return logits[len(prompt) - 1 : -1] / TEMPERATURE


@torch.no_grad()
def test_logprobs_and_entropies_are_those_of_each_sequence_alone(policy: PreTrainedModel, sequences: PaddedSequences):
    logprobs, entropies, _ = score_tokens(policy, sequences, TEMPERATURE, with_entropy=True)
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        expected = whole_logits(policy, prompt, completion).log_softmax(-1)
        length = len(completion)
        torch.testing.assert_close(logprobs[row, :length], expected[range(length), completion])
        torch.testing.assert_close(entropies[row, :length], -(expected.exp() * expected).sum(-1))
        assert logprobs[row, length:].tolist() == entropies[row, length:].tolist() == [0.0] * (6 - length)


def test_logprobs_carry_the_gradient_of_the_plain_computation(policy: PreTrainedModel, sequences: PaddedSequences):
    policy.zero_grad()
    (-completion_logprobs(policy, sequences, TEMPERATURE).sum()).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in policy.named_parameters()}
    policy.zero_grad()
    for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True):
        logits = whole_logits(policy, prompt, completion)
        functional.cross_entropy(logits, torch.tensor(completion), reduction="sum").backward()
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_the_padding_id_makes_no_difference(policy: PreTrainedModel, scalar_model: ScalarModel):
    first, second = (pad_sequences(PROMPTS, COMPLETIONS, pad_id) for pad_id in (0, 99))
    torch.testing.assert_close(
        completion_logprobs(policy, first, 1.0), completion_logprobs(policy, second, 1.0), rtol=0, atol=0
    )
    torch.testing.assert_close(sequence_scores(scalar_model, first), sequence_scores(scalar_model, second))


@torch.no_grad()
def test_a_sequence_does_not_see_the_others(policy: PreTrainedModel, scalar_model: ScalarModel):
    # Other tokens in the first and the last sequence: the middle one keeps its numbers.
    others = pad_sequences([[50, 51, 52], PROMPTS[1], [53, 54]], [[55], COMPLETIONS[1], [56, 57]])
    usual = pad_sequences(PROMPTS, COMPLETIONS)
    for compute in (
        lambda sequences: completion_logprobs(policy, sequences, 1.0)[1],
        lambda sequences: completion_values(scalar_model, sequences)[1],
        lambda sequences: sequence_scores(scalar_model, sequences)[1],
    ):
        torch.testing.assert_close(compute(others), compute(usual))


@torch.no_grad()
def test_the_padded_way_gives_the_same(tiny_model_path: Path, policy: PreTrainedModel, sequences: PaddedSequences):
    padded = load_policy(tiny_model_path, dtype="float32")
    padded.set_attn_implementation("sdpa")
    torch.testing.assert_close(completion_logprobs(padded, sequences, 1.0), completion_logprobs(policy, sequences, 1.0))


def poison(module: nn.Module, tokens: list[int]) -> Handle:
    """Makes a backbone answer NaN at these tokens of a packed row. Inside it, attention would carry NaN further."""

    def hook(_module: nn.Module, _arguments: object, output: BaseModelOutputWithPast) -> BaseModelOutputWithPast:
        mask = torch.zeros(output.last_hidden_state.shape[1], dtype=torch.bool)
        mask[tokens] = True
        return BaseModelOutputWithPast(last_hidden_state=output.last_hidden_state.masked_fill(mask[:, None], math.nan))

    return module.register_forward_hook(hook)


def test_nan_at_a_token_that_nothing_is_read_of_reaches_neither_results_nor_gradients(
    policy: PreTrainedModel, scalar_model: ScalarModel, sequences: PaddedSequences
):
    # The sequences are 5, 7 and 6 tokens long: the row's tokens 0, 1 and 12 to 15 are in prompts, and predict prompts;
    # 4, 11 and 17 are the last ones, of which only a score is read.
    computations = (
        (policy, policy.base_model, [0, 1, 4, 11, 12, 17], lambda: completion_logprobs(policy, sequences, 1.0)),
        (scalar_model, scalar_model.backbone, [0, 1, 4], lambda: completion_values(scalar_model, sequences)),
        (scalar_model, scalar_model.backbone, [0, 3, 5], lambda: sequence_scores(scalar_model, sequences)),
    )
    for model, backbone, tokens, compute in computations:
        clean = compute().detach()
        with poison(backbone, tokens):
            model.zero_grad()
            poisoned = compute()
            poisoned.sum().backward()
        torch.testing.assert_close(poisoned.detach(), clean)
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        assert gradients
        assert all(gradient.isfinite().all() for gradient in gradients)
        model.zero_grad()


@torch.no_grad()
def test_a_nan_in_one_sequence_stays_there(policy: PreTrainedModel, sequences: PaddedSequences):
    def hook(_module: nn.Module, _arguments: object, embedded: Tensor) -> Tensor:
        return embedded.index_fill(1, torch.tensor([6]), math.nan)  # the second token of the second sequence

    with policy.get_input_embeddings().register_forward_hook(hook):
        logprobs = completion_logprobs(policy, sequences, 1.0)
    assert logprobs.isnan().any(-1).tolist() == [False, True, False]


@torch.no_grad()
def test_a_nan_at_a_token_that_is_read_surfaces(
    policy: PreTrainedModel, scalar_model: ScalarModel, sequences: PaddedSequences
):
    # Token 3 of row 0 is the first of its completion's two: the second is predicted, and valued, there.
    with poison(policy.base_model, [3]), poison(scalar_model.backbone, [3, 4]):
        assert completion_logprobs(policy, sequences, 1.0).isnan().nonzero().tolist() == [[0, 1]]
        assert completion_values(scalar_model, sequences).isnan().nonzero().tolist() == [[0, 1]]
        assert sequence_scores(scalar_model, sequences).isnan().tolist() == [True, False, False]


@torch.no_grad()
def test_values_are_read_before_each_token_and_scores_at_the_last(
    scalar_model: ScalarModel, sequences: PaddedSequences
):
    values, scores = completion_values(scalar_model, sequences), sequence_scores(scalar_model, sequences)
    for row, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        hidden = scalar_model.backbone(input_ids=torch.tensor([prompt + completion])).last_hidden_state[0]
        alone = (hidden @ scalar_model.head.weight[0] - scalar_model.mean) / scalar_model.std
        torch.testing.assert_close(values[row, : len(completion)], alone[len(prompt) - 1 : -1])
        assert values[row, len(completion) :].tolist() == [0.0] * (6 - len(completion))
        torch.testing.assert_close(scores[row], alone[-1])


def test_values_and_scores_carry_gradient(scalar_model: ScalarModel, sequences: PaddedSequences):
    for result in (completion_values(scalar_model, sequences), sequence_scores(scalar_model, sequences)):
        scalar_model.zero_grad()
        result.sum().backward()
        assert scalar_model.head.weight.grad is not None
        assert scalar_model.head.weight.grad.abs().sum() > 0
    scalar_model.zero_grad()


@torch.no_grad()
def test_the_model_sees_the_real_tokens_alone(policy: PreTrainedModel, sequences: PaddedSequences):
    seen: list[Tensor] = []

    def hook(_module: nn.Module, arguments: tuple[Tensor], _output: Tensor) -> None:
        seen.append(arguments[0])

    with policy.get_input_embeddings().register_forward_hook(hook):
        completion_logprobs(policy, sequences, 1.0)
    assert [ids.tolist() for ids in seen] == [[[5, 6, 7, 20, 21, 8, 22, 23, 24, 25, 26, 27, 9, 10, 11, 12, 13, 28]]]


@torch.no_grad()
def test_bfloat16_stays_close_to_float32(tiny_model_path: Path, policy: PreTrainedModel, sequences: PaddedSequences):
    logprobs = completion_logprobs(load_policy(tiny_model_path, dtype="bfloat16"), sequences, 1.0)
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs, completion_logprobs(policy, sequences, 1.0), rtol=0.1, atol=0.1)
