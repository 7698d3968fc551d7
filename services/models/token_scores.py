"""Forward passes over sequences: log-probabilities, entropies, values and scores.

The models get no attention mask: padding is on the right, so causal attention already hides it, and without a mask
torch takes its fused causal kernel.
"""

from typing import Literal, overload

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_services.algorithms.logprobs import (
    predictor_positions,
    token_logprobs_and_entropy_from_hidden,
    token_logprobs_from_hidden,
)
from rlhf_services.models.scalar_model import ScalarModel
from rlhf_services.models.sequences import PaddedSequences


@overload
def completion_logprobs(
    model: PreTrainedModel, sequences: PaddedSequences, temperature: float, *, with_entropy: Literal[False] = False
) -> Tensor: ...


@overload
def completion_logprobs(
    model: PreTrainedModel, sequences: PaddedSequences, temperature: float, *, with_entropy: Literal[True]
) -> tuple[Tensor, Tensor]: ...


def completion_logprobs(
    model: PreTrainedModel, sequences: PaddedSequences, temperature: float, *, with_entropy: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Returns the log-probability of every completion token, [B, T] float32 nats, 0.0 at padding.

    Carries gradient where it is enabled. The output projection runs at completion tokens alone, a chunk at a time.

    Args:
        model: a causal language model as load_policy returns it, on the device of the sequences.
        temperature: divides the logits; above 0.
        with_entropy: return (logprobs, entropies) of the same shape.
    """
    mask = sequences.completion_mask
    rows, positions = _predictors(sequences, mask)
    ids = sequences.input_ids[rows, positions + 1]
    hidden = model.base_model(input_ids=sequences.input_ids, use_cache=False).last_hidden_state[rows, positions]
    lm_head_weight = model.get_output_embeddings().weight
    if not with_entropy:
        return _scatter(token_logprobs_from_hidden(hidden, lm_head_weight, ids, temperature), mask)
    logprobs, entropies = token_logprobs_and_entropy_from_hidden(hidden, lm_head_weight, ids, temperature)
    return _scatter(logprobs, mask), _scatter(entropies, mask)


def completion_values(scalar_model: ScalarModel, sequences: PaddedSequences) -> Tensor:
    """Returns the value of the state before each completion token, [B, T] float32, 0.0 at padding. Carries gradient."""
    mask = sequences.completion_mask
    return _scatter(scalar_model(sequences.input_ids, at=_predictors(sequences, mask)), mask)


def sequence_scores(scalar_model: ScalarModel, sequences: PaddedSequences) -> Tensor:
    """Returns the score of each sequence, read at its last real token: [B] float32. Carries gradient."""
    last = sequences.prompt_lengths + sequences.completion_lengths - 1
    scores: Tensor = scalar_model(sequences.input_ids, at=(torch.arange(len(last), device=last.device), last))
    return scores


def _predictors(sequences: PaddedSequences, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and positions, [N] each, at which the N completion tokens are predicted, in the order of mask [B, T]."""
    rows, tokens = mask.nonzero(as_tuple=True)
    return rows, predictor_positions(sequences.prompt_lengths, mask.shape[1])[rows, tokens]


def _scatter(values: Tensor, mask: Tensor) -> Tensor:
    """Puts values [N] at the True positions of mask [B, T], row by row, and 0.0 elsewhere."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)
