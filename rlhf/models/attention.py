"""Causal attention over packed rows: several sequences in one row, each seeing its own tokens alone.

It is registered with transformers as an attention implementation. A GPU uses torch's variable-length kernel; on a CPU
short sequences are computed as plain products, which is faster there than torch's kernels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "rlhf_packed"
"""Name of the attention implementation in transformers' registry."""

MAX_PLAIN_TOKENS = 512
"""Up to this length plain products are faster than torch's fused kernel, whose memory stays linear beyond it."""

BUCKET_TOKENS = 32
"""Sequences whose lengths round up to the same multiple of this are computed together, in few large products."""

MAX_GROUP_PAIRS = 2**21
"""Most pairs of positions in one group of sequences. It bounds the memory of the attention probabilities."""

_FLASH_DTYPES = (torch.bfloat16, torch.float16)
"""Element types that torch's variable-length attention accepts."""

_UNSUPPORTED_OPTIONS = ("sliding_window", "softcap", "s_aux", "position_bias", "cache", "dropout")
"""Options of transformers' models that change attention from the plain causal one."""


class UnsupportedAttentionError(Exception):
    """A model asks for a kind of attention that packed rows do not support."""


def boundaries_mask(lengths: Tensor) -> Tensor:
    """Returns the boundaries (0, ..., N) of sequences as the mask [1, 1, 1, B + 1] int32 for packed_attention.

    Args:
        lengths: [B] int64, of the sequences in the row, N in total.
    """
    ends = lengths.cumsum(0)
    return torch.cat([ends.new_zeros(1), ends]).to(torch.int32)[None, None, None]


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Returns causal attention [B, L, H, D] of query [B, H, L, D] on key and value [B, K, L, D], K dividing H.

    With the mask of `boundaries_mask` B is 1, and every token sees only the tokens before it in its own sequence. With
    any other mask, or none, this is torch's attention (generation with a cache, padded batches).

    Args:
        module: the attention layer, for transformers' interface.
        query: [B, H, L, D].
        key, value: [B, K, L, D].
        attention_mask: from `boundaries_mask` for a packed row.
        scaling: factor of the scores; None is 1 / sqrt(D).
        options: `max_length_q`, the longest sequence, saves a GPU synchronisation; the rest go to torch's attention.
    Raises: UnsupportedAttentionError if the row is packed and an option changes attention.
    """
    if attention_mask is None or attention_mask.dtype != torch.int32:
        output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
        return output, None
    given = {name: options.get(name) for name in _UNSUPPORTED_OPTIONS}
    if unsupported := [name for name, each in given.items() if isinstance(each, Tensor) or each]:
        raise UnsupportedAttentionError(f"{type(module).__name__} asks for {', '.join(unsupported)} in a packed row")
    boundaries = attention_mask[0, 0, 0]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    query_row, key_row, value_row = (each[0].transpose(0, 1) for each in (query, key, value))
    if query.device.type != "cuda" or query.dtype not in _FLASH_DTYPES:
        return causal_attention(query_row, key_row, value_row, boundaries.diff().tolist(), scale)[None], None
    longest = options.get("max_length_q") or int(boundaries.diff().max())
    packed = varlen_attn(
        query_row,
        key_row,
        value_row,
        boundaries,
        boundaries,
        longest,
        longest,
        scale=scale,
        window_size=(-1, 0),  # all tokens before, none after: causal
        enable_gqa=True,
    )
    assert isinstance(packed, Tensor)
    return packed[None], None


AttentionInterface.register(NAME, packed_attention)


AttentionMaskInterface.register(NAME, sdpa_mask)


def causal_attention(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], scale: float) -> Tensor:
    """Returns softmax(scale * query key^T) value within each sequence, each token seeing itself and those before it.

    Args:
        query: [N, H, D].
        key, value: [N, K, D], K dividing H; query head h reads key head h // (H / K).
        lengths: of the sequences in the row, N in total.
        scale: factor of the scores.
    Returns: [N, H, D] in the dtype of the query.
    """
    runs = [(short, tuple(run)) for short, run in groupby(lengths, lambda length: length <= MAX_PLAIN_TOKENS)]
    sizes = [sum(run) for _, run in runs]
    queries, keys, values = (each.split_with_sizes(sizes) for each in (query, key, value))
    outputs = [
        (_plain if short else _fused)(queries[index], keys[index], values[index], run, scale)
        for index, (short, run) in enumerate(runs)
    ]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


@dataclass(frozen=True, slots=True)
class _Group:
    """Sequences of similar length as a rectangle of B sequences of L tokens; shorter ones repeat their last token."""

    rows: Tensor
    """[B L] int64: the position in the row of each token of the rectangle."""
    slots: Tensor
    """[n] int64: the tokens of the rectangle that are not repetitions."""
    real: Tensor
    """[B, L, 1, 1] bool: `slots` as a mask."""

    def take(self, x: Tensor, key_heads: int) -> Tensor:
        """Returns a row [N, K G, D] as a new tensor [B K, G L, D] of at least float32."""
        count, length = self.real.shape[:2]
        parts = x.index_select(0, self.rows).view(count, length, key_heads, -1, x.shape[-1]).permute(0, 2, 3, 1, 4)
        precise = torch.promote_types(x.dtype, torch.float32)
        return parts.to(precise, memory_format=torch.contiguous_format).reshape(count * key_heads, -1, x.shape[-1])

    def put(self, x: Tensor, into: Tensor) -> None:
        """Writes [B K, G L, D] to its positions in the row [N, K G, D]."""
        count, length = self.real.shape[:2]
        by_token = x.view(count, -1, length, x.shape[-1]).transpose(1, 2).to(into.dtype)
        into.index_copy_(0, self.rows[self.slots], by_token.reshape(count * length, *into.shape[1:])[self.slots])


@lru_cache(maxsize=4)  # every layer of a model asks for the same groups
def _groups(lengths: tuple[int, ...], device: torch.device) -> list[_Group]:
    starts = [0, *accumulate(lengths)]
    longest_first = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    groups = []
    for _, bucket in groupby(longest_first, lambda index: -(-lengths[index] // BUCKET_TOKENS)):
        members = list(bucket)
        longest = lengths[members[0]]
        size = max(1, MAX_GROUP_PAIRS // longest**2)
        for first in range(0, len(members), size):
            part = members[first : first + size]
            sizes = torch.tensor([lengths[index] for index in part])[:, None]
            offsets = torch.arange(lengths[part[0]])[None]
            rows = torch.tensor([starts[index] for index in part])[:, None] + torch.minimum(offsets, sizes - 1)
            real = offsets < sizes
            slots = real.flatten().nonzero().flatten()
            groups.append(_Group(rows.flatten().to(device), slots.to(device), real[:, :, None, None].to(device)))
    return groups


def _plain(query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...], scale: float) -> Tensor:
    groups = _groups(lengths, query.device)
    output: Tensor = _PlainAttention.apply(query, key, value, groups, scale)  # type: ignore[no-untyped-call]
    return output


def _fused(query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...], scale: float) -> Tensor:
    outputs = []
    rows = (each.split_with_sizes(list(lengths)) for each in (query, key, value))
    for parts in zip(*rows, strict=True):
        queries, keys, values = (each.transpose(0, 1)[None] for each in parts)
        fused = functional.scaled_dot_product_attention(
            queries, keys, values, is_causal=True, scale=scale, enable_gqa=True
        )
        outputs.append(fused[0].transpose(0, 1))
    return torch.cat(outputs)


class _PlainAttention(torch.autograd.Function):
    """Attention as plain products; the queries that share a key head are in one product.

    Products and softmax run in float32 (float64 for float64). The probabilities are not kept: the backward pass
    computes them again. A repeated token is visible to other repeated tokens alone, and its gradient is 0.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, groups: list[_Group], scale: float) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.groups, ctx.scale = groups, scale
        output = torch.empty_like(query, memory_format=torch.contiguous_format)
        for group in groups:
            queries, keys, values = (group.take(each, key.shape[1]) for each in (query, key, value))
            group.put(_probabilities(queries.mul_(scale), keys) @ values, output)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        saved: tuple[Tensor, Tensor, Tensor] = ctx.saved_tensors
        gradients = [torch.empty_like(each, memory_format=torch.contiguous_format) for each in saved]
        key_heads = saved[1].shape[1]
        for group in ctx.groups:
            queries, keys, values = (group.take(each, key_heads) for each in saved)
            grad = group.take(grad_output, key_heads)
            count, length = group.real.shape[:2]
            grad.view(count, -1, length, grad.shape[-1]).transpose(1, 2).masked_fill_(~group.real, 0.0)
            probabilities = _probabilities(queries.mul_(ctx.scale), keys)
            group.put(probabilities.mT @ grad, gradients[2])
            # Through the softmax: p * (g - sum(p * g)), in place.
            grad_scores = (grad @ values.mT).mul_(probabilities)
            grad_scores.addcmul_(probabilities, grad_scores.sum(-1, keepdim=True), value=-1)
            group.put(grad_scores.mT @ queries, gradients[1])
            group.put((grad_scores @ keys).mul_(ctx.scale), gradients[0])
        return gradients[0], gradients[1], gradients[2], None, None


def _probabilities(scaled_queries: Tensor, keys: Tensor) -> Tensor:
    """Returns the attention of queries [P, G L, D], G heads after one another, on keys [P, L, D]: [P, G L, L]."""
    length = keys.shape[1]
    scores = scaled_queries @ keys.mT
    future = torch.full((length, length), -torch.inf, dtype=scores.dtype, device=scores.device).triu_(1)
    scores.view(len(scores), -1, length, length).add_(future)
    return scores.softmax(-1)
