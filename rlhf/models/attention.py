"""Attention over many sequences that lie one behind the other in a single row, without padding.

transformers hands a mask of four dimensions to its attention function as it is. Here that mask is a tensor of integers
[1, 1, 1, B + 1], the places in the row at which the sequences begin, and the row's length. So what separates the
sequences travels like any argument: it is there when a layer is computed again on the way back. An attention function
that knows nothing of it fails; it cannot silently look across.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rlhf.models.causal_attention import causal_attention

NAME = "rlhf_packed"
"""The attention implementation of a transformers model that can take packed rows."""


_FLASH_DTYPES = (torch.bfloat16, torch.float16)
"""What torch's variable-length attention takes."""

_UNSUPPORTED_OPTIONS = ("sliding_window", "softcap", "s_aux", "position_bias", "cache", "dropout")
"""What changes attention from the plain causal one, as transformers' models name it."""


class UnsupportedAttentionError(Exception):
    """A model asks for attention that packed rows do not have."""


def boundaries_mask(lengths: Tensor) -> Tensor:
    """Returns lengths [B] as the mask [1, 1, 1, B + 1] int32 that packed_attention understands: (0, ..., N)."""
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

    With the mask of `boundaries_mask` B is 1, and every token sees the tokens before it in its own sequence alone. With
    any other mask, or none, it is torch's attention (generation with a cache, padded batches).

    Args:
        options: `max_length_q`, the longest sequence, spares a GPU the question; others go to torch's attention.
    Raises: UnsupportedAttentionError if an option changes attention, in a packed row.
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
        window_size=(-1, 0),  # all tokens before and none behind: causal
        enable_gqa=True,
    )
    assert isinstance(packed, Tensor)
    return packed[None], None


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
