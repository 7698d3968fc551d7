"""Attention within the sequences of a packed row, and the models that can take one."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from rlhf.models import attention
from rlhf.models import attention as causal_attention
from rlhf.models.loading import load_policy
from rlhf.models.packing import pack_if_possible
from rlhf.models.policy_model import completion_logprobs
from rlhf.models.sequences import pad_sequences
from tests.support.tiny_model import VOCAB_SIZE

LENGTHS = [1, 7, 3]


def random_row(dtype: torch.dtype = torch.float64, num_tokens: int = 11) -> list[Tensor]:
    """Query [N, 4, 2], key and value [N, 2, 2], with gradient."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(num_tokens, heads, 2, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for heads in (4, 2, 2)
    ]


def plain_attention(query: Tensor, key: Tensor, value: Tensor, lengths: list[int], scale: float) -> Tensor:
    """The definition, with one mask for the whole row."""
    numbers = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    visible = (numbers[:, None] == numbers).tril()
    key, value = key.repeat_interleave(2, dim=1), value.repeat_interleave(2, dim=1)
    scores = torch.einsum("qhd,khd->hqk", query, key) * scale
    probabilities = scores.masked_fill(~visible, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", probabilities, value)


@pytest.fixture(params=[256, 4, 0], ids=["plain", "plain and fused", "fused"])
def max_plain_tokens(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Sequences of up to this length take the plain products, longer ones torch's kernel."""
    monkeypatch.setattr(causal_attention, "MAX_PLAIN_TOKENS", request.param)
    return int(request.param)


@pytest.mark.usefixtures("max_plain_tokens")
def test_attention_and_its_gradient_are_those_of_the_definition():
    row = random_row()
    ours = causal_attention.causal_attention(*row, LENGTHS, 0.7)
    expected = plain_attention(*row, LENGTHS, 0.7)
    torch.testing.assert_close(ours, expected)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(torch.autograd.grad(ours, row, weights), torch.autograd.grad(expected, row, weights))


def test_sequences_of_like_length_are_computed_together_as_if_each_were_alone(monkeypatch: pytest.MonkeyPatch):
    lengths = [4, 1, 3, 4, 2]
    row = random_row(num_tokens=14)
    expected = plain_attention(*row, lengths, 0.7)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = torch.autograd.grad(expected, row, weights)
    # All in one rectangle; those of 1 and 2, and of 3 and 4 tokens; the latter two at a time.
    for bucket_tokens, max_pairs in ((32, 2**21), (2, 2**21), (2, 32)):
        monkeypatch.setattr(causal_attention, "BUCKET_TOKENS", bucket_tokens)
        monkeypatch.setattr(causal_attention, "MAX_GROUP_PAIRS", max_pairs)
        causal_attention._groups.cache_clear()
        ours = causal_attention.causal_attention(*row, lengths, 0.7)
        torch.testing.assert_close(ours, expected)
        torch.testing.assert_close(torch.autograd.grad(ours, row, weights), gradients)
    causal_attention._groups.cache_clear()


def test_the_gradient_is_that_of_finite_differences():
    assert gradcheck(lambda *row: causal_attention.causal_attention(*row, LENGTHS, 0.7), random_row())


def test_bfloat16_is_computed_in_float32():
    row = random_row(torch.bfloat16)
    ours = causal_attention.causal_attention(*row, LENGTHS, 0.7)
    expected = plain_attention(*(each.float() for each in row), LENGTHS, 0.7)
    assert ours.dtype == torch.bfloat16
    # One rounding at the end: 8 bits.
    torch.testing.assert_close(ours.float(), expected, rtol=2**-8, atol=1e-6)


def tiny(config_class: type[PreTrainedConfig], **options: object) -> PreTrainedModel:
    config = config_class(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        initializer_range=0.3,
        **options,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    pack_if_possible(model)
    return model


@pytest.mark.parametrize("config_class", [LlamaConfig, Qwen2Config, Qwen3Config])
def test_usual_architectures_take_packed_rows(config_class: type[PreTrainedConfig]):
    model = tiny(config_class)
    assert model.config._attn_implementation == attention.NAME
    sequences = pad_sequences([[5, 6, 7], [8]], [[20], [21, 22, 23]])
    packed = completion_logprobs(model, sequences, 1.0)
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(packed, completion_logprobs(model, sequences, 1.0))


def test_a_sliding_window_is_left_to_torch_and_still_right():
    model = tiny(MistralConfig, sliding_window=3)
    assert model.config._attn_implementation == "sdpa"
    prompt, completion = [5, 6, 7, 8, 9], [20, 21, 22]
    logits = model(input_ids=torch.tensor([prompt + completion]), use_cache=False).logits[0, 4:-1]
    batch = pad_sequences([prompt, [10]], [completion, [23]])
    expected = logits.log_softmax(-1)[range(3), completion]
    torch.testing.assert_close(completion_logprobs(model, batch, 1.0)[0], expected)


def test_a_model_whose_layers_ignore_the_boundaries_is_found_out(monkeypatch: pytest.MonkeyPatch):
    def one_sequence(module, query, key, value, attention_mask, **options):
        return functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True).transpose(
            1, 2
        ), None

    monkeypatch.setitem(attention.AttentionInterface._global_mapping, attention.NAME, one_sequence)
    assert tiny(LlamaConfig).config._attn_implementation == "sdpa"


@pytest.mark.parametrize("option", [{"softcap": 30.0}, {"s_aux": torch.zeros(4)}, {"sliding_window": 3}])
def test_attention_of_another_kind_is_refused_in_a_packed_row(option: dict[str, object]):
    states = [torch.zeros(1, heads, 4, 2) for heads in (4, 2, 2)]
    boundaries = attention.boundaries_mask(torch.tensor([1, 3]))
    with pytest.raises(attention.UnsupportedAttentionError, match=f"Module asks for {next(iter(option))}"):
        attention.packed_attention(nn.Module(), *states, boundaries, **option)


@torch.no_grad()
def test_a_packing_model_still_generates_like_torchs_attention(tiny_model_path: Path):
    # Generation has a cache, and a padding mask where prompts differ in length.
    model = load_policy(tiny_model_path, dtype="float32")
    batch = {
        "input_ids": torch.tensor([[0, 0, 5], [6, 7, 8]]),
        "attention_mask": torch.tensor([[0, 0, 1], [1, 1, 1]]),
    }
    results = []
    for implementation in (attention.NAME, "sdpa"):
        model.set_attn_implementation(implementation)
        results.append(model.generate(**batch, max_new_tokens=5, do_sample=False, pad_token_id=0))
    assert torch.equal(*results)


def test_boundaries_are_the_beginnings_and_the_end():
    mask = attention.boundaries_mask(torch.tensor([3, 1, 2]))
    assert mask.dtype == torch.int32
    assert mask.tolist() == [[[[0, 3, 4, 6]]]]
