"""Forward passes of a backbone without padding: all real tokens of a batch packed into one row."""

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from rlhf.models.attention import NAME, UnsupportedAttentionError, boundaries_mask
from rlhf.models.sequences import PaddedSequences

_PROBE_LENGTHS = (3, 5)
_PROBE_TOLERANCE = 0.1
"""Relative to a hidden state's norm: far above rounding errors, far below the effect of another sequence's tokens."""


def pack_if_possible(model: PreTrainedModel) -> None:
    """Makes the model use packed rows if a probe shows that it keeps the sequences of a row apart; else does nothing.

    Models are left as they are if their layers use sliding windows, attention sinks or anything but plain causal
    attention, or if their attention does not go through transformers' interface.
    """
    config = model.config.get_text_config()
    layer_types = set(getattr(config, "layer_types", None) or ("full_attention",))
    windowed = getattr(config, "sliding_window", None) is not None
    if not model._supports_attention_backend or layer_types != {"full_attention"} or windowed:
        return
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    if not _keeps_sequences_apart(model.base_model):
        model.set_attn_implementation(before)


@torch.no_grad()
def _keeps_sequences_apart(backbone: PreTrainedModel) -> bool:
    """Returns whether two sequences in one row have the same hidden states in either order."""
    middle = backbone.config.get_text_config().vocab_size // 2  # away from special tokens
    ids = middle + torch.arange(sum(_PROBE_LENGTHS), device=backbone.device)
    lengths = torch.tensor(_PROBE_LENGTHS, device=backbone.device)
    # The same two sequences, in the other order.
    turned = ids.roll(_PROBE_LENGTHS[1])
    try:
        one_way = _run_packed(backbone, ids[None], lengths, max(_PROBE_LENGTHS))[0]
        other_way = _run_packed(backbone, turned[None], lengths.flip(0), max(_PROBE_LENGTHS))[0]
    except UnsupportedAttentionError:
        return False
    difference = (one_way - other_way.roll(_PROBE_LENGTHS[0], dims=0)).float().norm(dim=-1)
    return bool((difference <= _PROBE_TOLERANCE * one_way.float().norm(dim=-1)).all())


def hidden_at(backbone: PreTrainedModel, sequences: PaddedSequences, rows: Tensor, positions: Tensor) -> Tensor:
    """Returns the last hidden states [N, d] of the tokens at (rows, positions), [N] int64 each.

    If the backbone takes packed rows (rlhf/models/attention.py), it sees no padding. Otherwise it sees the padded batch
    without a mask: padding is on the right, so causal attention hides it. In both cases nothing at padding reaches the
    result or a gradient.

    Args:
        backbone: the model without its head.
        sequences: on the device of the backbone.
        rows, positions: [N] int64.
    """
    if backbone.config._attn_implementation != NAME:
        padded: Tensor = backbone(input_ids=sequences.input_ids, use_cache=False).last_hidden_state
        return padded[rows, positions]
    lengths, width = sequences.lengths, sequences.input_ids.shape[1]
    real = torch.arange(width, device=lengths.device) < lengths[:, None]
    hidden = _run_packed(backbone, sequences.input_ids[real][None], lengths, width)
    starts = lengths.cumsum(0) - lengths
    return hidden[0, starts[rows] + positions]


def _run_packed(backbone: PreTrainedModel, input_ids: Tensor, lengths: Tensor, longest: int) -> Tensor:
    """Returns the last hidden states [1, N, d] of a packed row of ids [1, N] with sequences of these lengths [B]."""
    starts = lengths.cumsum(0) - lengths
    row_starts = starts.repeat_interleave(lengths, output_size=input_ids.shape[1])
    hidden: Tensor = backbone(
        input_ids=input_ids,
        position_ids=(torch.arange(input_ids.shape[1], device=lengths.device) - row_starts)[None],
        attention_mask=boundaries_mask(lengths),
        max_length_q=longest,
        use_cache=False,
    ).last_hidden_state
    return hidden


def linear_in_float32(head: nn.Linear, hidden: Tensor) -> Tensor:
    """Returns the output of a head with one output for hidden states [..., d], in float32: [...].

    Float32 costs little, because the head is small, and keeps the precision of a sum over the hidden size.
    """
    bias = None if head.bias is None else head.bias.float()
    return functional.linear(hidden.float(), head.weight.float(), bias).squeeze(-1)
