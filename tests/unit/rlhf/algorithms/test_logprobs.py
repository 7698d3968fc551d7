"""Log-probabilities and entropies, against numbers worked by hand and a float64 loop."""

import math

import pytest
import torch
from torch.autograd import gradcheck
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from rlhf.algorithms.logprobs import (
    entropy,
    predictor_positions,
    sequence_logprobs,
    token_logprobs,
    token_logprobs_and_entropy_from_hidden,
    token_logprobs_from_hidden,
)

# softmax of (log 1, log 3) is (1/4, 3/4); at temperature 1/2 the logits double: (log 1, log 9) gives (1/10, 9/10).
QUARTER = torch.tensor([[0.0, math.log(3.0)], [0.0, math.log(3.0)]])
IDS = torch.tensor([0, 1])


def random_projection(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """hidden [7, 5], lm_head_weight [11, 5] and ids [7]."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 5, generator=generator, dtype=dtype)
    weight = torch.randn(11, 5, generator=generator, dtype=dtype)
    return hidden, weight, torch.randint(0, 11, (7,), generator=generator)


def loop_logprobs(hidden: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor, temperature: float) -> list[float]:
    """The definition, in Python floats."""
    result = []
    for row, token in zip(hidden.tolist(), ids.tolist(), strict=True):
        logits = [sum(h * w for h, w in zip(row, line, strict=True)) / temperature for line in weight.tolist()]
        result.append(logits[token] - math.log(sum(math.exp(logit) for logit in logits)))
    return result


def test_a_token_is_predicted_one_position_before_it_stands():
    # Prompts of 3 and 1 tokens: their first completion tokens stand at 3 and 1, and are predicted at 2 and 0.
    positions = predictor_positions(torch.tensor([3, 1]), 2)
    assert positions.tolist() == [[2, 3], [0, 1]]


def test_token_logprobs_by_hand():
    expected = torch.tensor([math.log(1 / 4), math.log(3 / 4)])
    torch.testing.assert_close(token_logprobs(QUARTER, IDS), expected)


def test_temperature_divides_the_logits():
    expected = torch.tensor([math.log(1 / 10), math.log(9 / 10)])
    torch.testing.assert_close(token_logprobs(QUARTER, IDS, temperature=0.5), expected)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_the_callers_logits_are_not_changed(temperature: float):
    logits = QUARTER.clone()
    token_logprobs(logits, IDS, temperature)
    entropy(logits, temperature)
    assert torch.equal(logits, QUARTER)


def test_huge_logits_do_not_overflow():
    torch.testing.assert_close(token_logprobs(torch.tensor([[1e4, 0.0]]), torch.tensor([0])), torch.tensor([0.0]))


def test_entropy_by_hand():
    # (1/4, 3/4): -(1/4 log 1/4 + 3/4 log 3/4); uniform over 8: log 8.
    expected = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    torch.testing.assert_close(entropy(QUARTER[0]), torch.tensor(expected))
    torch.testing.assert_close(entropy(torch.zeros(8)), torch.tensor(math.log(8)))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk_size", [1, 3, 100])
def test_from_hidden_equals_a_float64_loop_for_every_chunk_size(chunk_size: int, temperature: float):
    hidden, weight, ids = random_projection(torch.float64)
    expected = torch.tensor(loop_logprobs(hidden, weight, ids, temperature), dtype=torch.float64)
    torch.testing.assert_close(token_logprobs_from_hidden(hidden, weight, ids, temperature, chunk_size), expected)


@pytest.mark.parametrize("chunk_size", [2, 100])
def test_from_hidden_has_the_gradient_of_the_whole_computation(chunk_size: int):
    gradients = []
    for chunked in (True, False):
        hidden, weight, ids = random_projection(torch.float64)
        hidden.requires_grad_()
        weight.requires_grad_()
        if chunked:
            logprobs, entropies = token_logprobs_and_entropy_from_hidden(hidden, weight, ids, 0.7, chunk_size)
        else:
            logits = hidden @ weight.T
            logprobs, entropies = token_logprobs(logits, ids, 0.7), entropy(logits, 0.7)
        (logprobs.square().sum() + 3 * entropies.sum()).backward()
        gradients.append((hidden.grad, weight.grad))
    torch.testing.assert_close(gradients[0], gradients[1])


def test_logprobs_alone_have_the_gradient_of_the_whole_computation():
    gradients = []
    for chunked in (True, False):
        hidden, weight, ids = random_projection(torch.float64)
        hidden.requires_grad_()
        weight.requires_grad_()
        if chunked:
            logprobs = token_logprobs_from_hidden(hidden, weight, ids, 0.7, 2)
        else:
            logprobs = token_logprobs(hidden @ weight.T, ids, 0.7)
        logprobs.square().sum().backward()
        gradients.append((hidden.grad, weight.grad))
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("wanted", ["logprobs", "entropies", "both"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_gradient_is_that_of_finite_differences(wanted: str, temperature: float):
    hidden, weight, ids = random_projection(torch.float64)

    def function(hidden: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logprobs, entropies = token_logprobs_and_entropy_from_hidden(hidden, weight, ids, temperature, 3)
        return {"logprobs": (logprobs,), "entropies": (entropies,), "both": (logprobs, entropies)}[wanted]

    assert gradcheck(function, (hidden.requires_grad_(), weight.requires_grad_()))


@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_only_what_is_trained_gets_a_gradient(frozen: str):
    hidden, weight, ids = random_projection()
    trained = weight if frozen == "hidden" else hidden
    trained.requires_grad_()
    token_logprobs_from_hidden(hidden, weight, ids).sum().backward()
    assert [hidden.grad is None, weight.grad is None] == [frozen == "hidden", frozen == "weight"]


class LargestTensor(TorchDispatchMode):
    """Notes the most elements that any tensor made within it has."""

    num_elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.num_elements = max(self.num_elements, tensor.numel())
        return result


def test_no_tensor_is_larger_than_a_chunk_of_logits():
    # 40 tokens, hidden size 5, 101 ids, 8 tokens at a time: 808 logits; the weight has 505 elements, all logits 4040.
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(40, 5, generator=generator, requires_grad=True)
    weight = torch.randn(101, 5, generator=generator, requires_grad=True)
    ids = torch.randint(0, 101, (40,), generator=generator)
    with LargestTensor() as largest:
        logprobs, entropies = token_logprobs_and_entropy_from_hidden(hidden, weight, ids, 0.7, chunk_size=8)
        (logprobs + entropies).sum().backward()
    assert largest.num_elements == 8 * 101


def test_the_weights_gradient_is_summed_in_float32():
    # Each of 512 tokens adds 1/512 of 1 - p = 1/2: with the 8 bits of bfloat16 the sum would stop growing at 1/4.
    hidden = torch.ones(512, 1).bfloat16()
    weight = torch.zeros(2, 1).bfloat16().requires_grad_()
    logprobs = token_logprobs_from_hidden(hidden, weight, torch.zeros(512, dtype=torch.int64), chunk_size=1)
    (logprobs.sum() / 512).backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[0.5], [-0.5]]


def test_entropy_does_not_change_the_logprobs():
    hidden, weight, ids = random_projection()
    with_entropy, _ = token_logprobs_and_entropy_from_hidden(hidden, weight, ids, 0.7)
    torch.testing.assert_close(with_entropy, token_logprobs_from_hidden(hidden, weight, ids, 0.7))


def test_bfloat16_is_reduced_in_float32():
    hidden, weight, ids = random_projection()
    hidden, weight = hidden.bfloat16(), weight.bfloat16()
    logprobs = token_logprobs_from_hidden(hidden, weight, ids)
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs, (hidden @ weight.T).float().log_softmax(-1)[range(7), ids])


def test_sequence_logprobs_sum_the_completion_and_ignore_padding():
    logprobs = torch.tensor([[-1.0, -2.0, math.nan], [-0.5, math.inf, math.nan]], requires_grad=True)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    sums = sequence_logprobs(logprobs, mask)
    sums.sum().backward()
    assert sums.tolist() == [-3.0, -0.5]
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_above_zero_is_refused(temperature: float):
    with pytest.raises(ValueError, match="temperature is"):
        token_logprobs(QUARTER, IDS, temperature)


def test_ids_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"logits \[2\], ids \[1\]"):
        token_logprobs(QUARTER, torch.tensor([0]))


def test_a_chunk_of_no_tokens_is_refused():
    with pytest.raises(ValueError, match="chunk_size is 0"):
        token_logprobs_from_hidden(*random_projection(), chunk_size=0)
