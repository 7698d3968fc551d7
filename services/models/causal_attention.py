"""Causal attention over the sequences of a packed row, one by one, for short ones faster than torch's on a CPU."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

MAX_PLAIN_TOKENS = 256
"""Up to this length plain products are faster than torch's fused kernel, which keeps memory linear beyond it."""


def causal_attention(query: Tensor, key: Tensor, value: Tensor, lengths: Sequence[int], scale: float) -> Tensor:
    """Returns softmax(scale query key^T) value within each sequence, each token seeing itself and those before it.

    Args:
        query: [N, H, D]. key, value: [N, K, D], K dividing H; query head h reads key head h // (H / K).
        lengths: of the sequences in the row, N together.
    Returns: [N, H, D] in the dtype of the query.
    """
    queries, keys, values = (each.split_with_sizes(list(lengths)) for each in (query, key, value))
    return torch.cat([_one_sequence(*parts, scale) for parts in zip(queries, keys, values, strict=True)])


def _one_sequence(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    if len(query) <= MAX_PLAIN_TOKENS:
        plain: Tensor = _PlainAttention.apply(query, key, value, scale)  # type: ignore[no-untyped-call]
        return plain
    queries, keys, values = (each.transpose(0, 1)[None] for each in (query, key, value))
    fused = functional.scaled_dot_product_attention(queries, keys, values, is_causal=True, scale=scale, enable_gqa=True)
    return fused[0].transpose(0, 1)


class _PlainAttention(torch.autograd.Function):
    """Attention of one sequence as plain products, with the queries that share a key head in one.

    Products and softmax run in float32 (float64 for float64). No probabilities are kept; the backward pass computes
    them again.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.scale = scale
        queries, keys, values = (_by_key_head(each, key.shape[1]) for each in (query, key, value))
        mixed = _probabilities(queries.mul_(scale), keys, len(query)) @ values
        return _by_token(mixed, query)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value = ctx.saved_tensors
        queries, keys, values, grad = (_by_key_head(each, key.shape[1]) for each in (query, key, value, grad_output))
        probabilities = _probabilities(queries.mul_(ctx.scale), keys, len(query))
        grad_values = probabilities.mT @ grad
        # Through the softmax: p * (g - sum(p * g)), in place.
        grad_scores = (grad @ values.mT).mul_(probabilities)
        grad_scores.addcmul_(probabilities, grad_scores.sum(-1, keepdim=True), value=-1)
        grad_keys = grad_scores.mT @ queries
        grad_queries = (grad_scores @ keys).mul_(ctx.scale)
        return _by_token(grad_queries, query), _by_token(grad_keys, key), _by_token(grad_values, value), None


def _probabilities(scaled_queries: Tensor, keys: Tensor, length: int) -> Tensor:
    """Attention of queries [K, G L, D] on keys [K, L, D], G heads of queries one behind the other: [K, G L, L]."""
    scores = scaled_queries @ keys.mT
    future = torch.full((length, length), -torch.inf, dtype=scores.dtype, device=scores.device).triu_(1)
    scores.view(len(scores), -1, length, length).add_(future)
    return scores.softmax(-1)


def _by_key_head(x: Tensor, key_heads: int) -> Tensor:
    """[L, K G, D] to a new [K, G L, D] of at least float32."""
    length, heads, size = x.shape
    heads_first = x.reshape(length, key_heads, heads // key_heads, size).permute(1, 2, 0, 3)
    precise = torch.promote_types(x.dtype, torch.float32)
    return heads_first.to(precise, copy=True, memory_format=torch.contiguous_format).view(key_heads, -1, size)


def _by_token(x: Tensor, like: Tensor) -> Tensor:
    """[K, G L, D] to [L, K G, D] in the dtype of `like`, which has that shape."""
    return x.view(len(x), -1, len(like), x.shape[-1]).permute(2, 0, 1, 3).to(like.dtype).reshape(like.shape)
