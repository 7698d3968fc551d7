"""Forward passes over batches of sequences: log-probabilities, entropies, values and scores."""

from typing import Literal, TypeAlias, overload

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf.algorithms.logprobs import predictor_positions
from rlhf.models.policy_model import PolicyModel, score_tokens
from rlhf.models.scalar_model import ScalarModel
from rlhf.models.sequences import PaddedSequences, scatter_to_mask

LanguageModel: TypeAlias = PreTrainedModel | PolicyModel
"""A causal language model from load_policy, or the module that wraps one for training."""


@overload
def completion_logprobs(
    model: LanguageModel, sequences: PaddedSequences, temperature: float, *, with_entropy: Literal[False] = False
) -> Tensor: ...


@overload
def completion_logprobs(
    model: LanguageModel, sequences: PaddedSequences, temperature: float, *, with_entropy: Literal[True]
) -> tuple[Tensor, Tensor]: ...


def completion_logprobs(
    model: LanguageModel, sequences: PaddedSequences, temperature: float, *, with_entropy: bool = False
) -> Tensor | tuple[Tensor, Tensor]:
    """Returns the log-probability of every completion token, [B, T] float32 nats, 0.0 at padding.

    Carries gradient where it is enabled.

    Args:
        model: on the device of the sequences.
        sequences: prompts and completions.
        temperature: divides the logits; above 0.
        with_entropy: True returns (logprobs, entropies), both of that shape.
    """
    if isinstance(model, PolicyModel):
        logprobs, entropies, _ = model(sequences, temperature, with_entropy=with_entropy)
    else:
        logprobs, entropies, _ = score_tokens(model, sequences, temperature, with_entropy=with_entropy)
    return logprobs if entropies is None else (logprobs, entropies)


def completion_logprobs_and_values(
    policy_model: PolicyModel, sequences: PaddedSequences, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (logprobs, entropies, values) of the completion tokens from one forward pass, [B, T] float32 each.

    All three are 0.0 at padding, and carry gradient where it is enabled.

    Raises: ValueError if the model has no value head.
    """
    scores: tuple[Tensor, Tensor, Tensor] = policy_model(sequences, temperature, with_entropy=True, with_values=True)
    return scores


def completion_values(scalar_model: ScalarModel, sequences: PaddedSequences) -> Tensor:
    """Returns the value of the state before each completion token, [B, T] float32, 0.0 at padding. Carries gradient."""
    mask = sequences.completion_mask
    rows, tokens = mask.nonzero(as_tuple=True)
    positions = predictor_positions(sequences.prompt_lengths, mask.shape[1])[rows, tokens]
    return scatter_to_mask(scalar_model(sequences, rows, positions), mask)


def sequence_scores(scalar_model: ScalarModel, sequences: PaddedSequences) -> Tensor:
    """Returns the score of each sequence, read at its last real token: [B] float32. Carries gradient."""
    last = sequences.lengths - 1
    scores: Tensor = scalar_model(sequences, torch.arange(len(last), device=last.device), last)
    return scores
