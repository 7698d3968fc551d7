"""Log-probabilities and entropies of tokens, from logits or from hidden states, and the one shift of the house."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rlhf_services.algorithms.masking import require_same_shape, select


def predictor_positions(prompt_lengths: Tensor, num_completion_tokens: int) -> Tensor:
    """Returns where in its sequence each completion token is predicted: the position of the token before it.

    This is the only place that knows that a causal model's output at position i is about token i + 1. It is also the
    state before the token, of which a critic's value is read.

    Args:
        prompt_lengths: [B] int64, each at least 1.
        num_completion_tokens: T, the longest completion of the batch.
    Returns: [B, T] int64; the token itself stands one further right. Positions of padding may lie past the sequence.
    """
    return (prompt_lengths - 1)[:, None] + torch.arange(num_completion_tokens, device=prompt_lengths.device)


def token_logprobs(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Returns log softmax(logits / temperature) at the given ids, in float32 (float64 for float64 logits).

    Args:
        logits: [..., V], aligned with ids: the logits that predict them. Not modified.
        ids: [...] int64.
        temperature: above 0.
    Returns: [...] nats.
    Raises: ValueError if the shapes do not fit or the temperature is not above 0.
    """
    require_same_shape(logits=logits[..., 0], ids=ids)
    return _at_ids(_scaled(logits, temperature).log_softmax(-1), ids)


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Returns the entropy of softmax(logits / temperature), in nats: [..., V] -> [...], at least float32."""
    return _entropy(_scaled(logits, temperature).log_softmax(-1))


def token_logprobs_from_hidden(
    hidden: Tensor, lm_head_weight: Tensor, ids: Tensor, temperature: float = 1.0, chunk_size: int = 256
) -> Tensor:
    """Returns token_logprobs(hidden @ lm_head_weight.T, ids, temperature) without ever holding all the logits.

    The products run in the dtype of `hidden`, everything after them in float32. Where gradients are wanted each chunk
    is computed again on the way back, so peak memory is that of one chunk: chunk_size x V.

    Args:
        hidden: [N, d] last hidden states that predict the ids. lm_head_weight: [V, d]. ids: [N] int64.
        temperature: above 0. chunk_size: tokens at a time, at least 1.
    Returns: [N] nats, float32.
    """
    logprobs, _ = _chunked(hidden, lm_head_weight, ids, temperature, chunk_size, with_entropy=False)
    return logprobs


def token_logprobs_and_entropy_from_hidden(
    hidden: Tensor, lm_head_weight: Tensor, ids: Tensor, temperature: float = 1.0, chunk_size: int = 256
) -> tuple[Tensor, Tensor]:
    """Returns token_logprobs_from_hidden and the entropy of the same distributions, [N] nats each."""
    return _chunked(hidden, lm_head_weight, ids, temperature, chunk_size, with_entropy=True)


def sequence_logprobs(logprobs: Tensor, completion_mask: Tensor) -> Tensor:
    """Returns each completion's log-probability: the sum of its tokens', [B, T] -> [B]; padding may hold anything."""
    require_same_shape(logprobs=logprobs, completion_mask=completion_mask)
    return select(logprobs, completion_mask).sum(-1)


def _chunked(
    hidden: Tensor, lm_head_weight: Tensor, ids: Tensor, temperature: float, chunk_size: int, with_entropy: bool
) -> tuple[Tensor, Tensor]:
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; it must be at least 1")
    require_same_shape(hidden=hidden[..., 0], ids=ids)
    needs_grad = torch.is_grad_enabled() and (hidden.requires_grad or lm_head_weight.requires_grad)
    logprobs, entropies = [], []
    for hidden_chunk, ids_chunk in zip(torch.split(hidden, chunk_size), torch.split(ids, chunk_size), strict=True):
        arguments = (hidden_chunk, lm_head_weight, ids_chunk, temperature, with_entropy)
        if needs_grad:
            # Nothing in a chunk draws random numbers, so their state need not be kept for the recomputation.
            chunk = checkpoint(_one_chunk, *arguments, use_reentrant=False, preserve_rng_state=False)
        else:
            chunk = _one_chunk(*arguments)
        logprobs.append(chunk[0])
        entropies.append(chunk[1])
    return torch.cat(logprobs), torch.cat(entropies)


def _one_chunk(
    hidden: Tensor, lm_head_weight: Tensor, ids: Tensor, temperature: float, with_entropy: bool
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies (zeros if not wanted) of one chunk, [n] each."""
    # log_softmax is one fused pass in each direction; logit minus logsumexp is several.
    all_logprobs = _scaled(hidden @ lm_head_weight.T, temperature).log_softmax(-1)
    logprobs = _at_ids(all_logprobs, ids)
    return logprobs, _entropy(all_logprobs) if with_entropy else torch.zeros_like(logprobs)


def _entropy(all_logprobs: Tensor) -> Tensor:
    return -(all_logprobs.exp() * all_logprobs).sum(-1)


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    """Logits over temperature in at least float32, never the caller's own tensor changed."""
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; log-probabilities need one above 0")
    precise = logits if logits.dtype == torch.float64 else logits.float()
    return precise if temperature == 1.0 else precise / temperature


def _at_ids(x: Tensor, ids: Tensor) -> Tensor:
    return x.gather(-1, ids[..., None]).squeeze(-1)
