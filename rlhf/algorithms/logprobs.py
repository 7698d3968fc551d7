"""Log-probabilities and entropies of tokens, from logits or from hidden states, and the shift by one position."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rlhf.algorithms.masking import require_same_shape, select


def predictor_positions(prompt_lengths: Tensor, num_completion_tokens: int) -> Tensor:
    """Returns the position at which each completion token is predicted: that of the token before it.

    A causal model's output at position i predicts token i + 1; this function is the only place that makes the shift.
    A critic's value of the state before a token is read at the same position.

    Args:
        prompt_lengths: [B] int64, each at least 1.
        num_completion_tokens: T, the length of the longest completion in the batch.
    Returns: [B, T] int64; the token itself is one position later. Positions of padding may lie past the sequence.
    """
    return (prompt_lengths - 1)[:, None] + torch.arange(num_completion_tokens, device=prompt_lengths.device)


def token_logprobs(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """Returns log softmax(logits / temperature) at the given ids, in float32 (float64 for float64 logits).

    Args:
        logits: [..., V], those that predict the ids. Not modified.
        ids: [...] int64.
        temperature: above 0.
    Returns: [...] nats.
    Raises: ValueError if the shapes differ or the temperature is not above 0.
    """
    require_same_shape(logits=logits[..., 0], ids=ids)
    return _at_ids(_scaled(logits, temperature).log_softmax(-1), ids)


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Returns the entropy of softmax(logits / temperature), in nats: [..., V] -> [...], at least float32."""
    return _entropy(_scaled(logits, temperature).log_softmax(-1))


def token_logprobs_from_hidden(
    hidden: Tensor, lm_head_weight: Tensor, ids: Tensor, temperature: float = 1.0, chunk_size: int = 256
) -> Tensor:
    """Returns token_logprobs(hidden @ lm_head_weight.T, ids, temperature) without holding all the logits at once.

    The products run in the dtype of `hidden`, the rest in float32. The logits of a chunk are computed again in the
    backward pass, so peak memory is that of one chunk, chunk_size x V. The gradient of the weight is summed over the
    chunks in float32.

    Args:
        hidden: [N, d], the last hidden states that predict the ids.
        lm_head_weight: [V, d].
        ids: [N] int64.
        temperature: above 0.
        chunk_size: tokens computed at a time, at least 1.
    Returns: [N] nats, float32.
    Raises: ValueError if the shapes differ, or temperature or chunk_size is out of range.
    """
    logprobs, _ = _chunked(hidden, lm_head_weight, ids, temperature, chunk_size, with_entropy=False)
    return logprobs


def token_logprobs_and_entropy_from_hidden(
    hidden: Tensor, lm_head_weight: Tensor, ids: Tensor, temperature: float = 1.0, chunk_size: int = 256
) -> tuple[Tensor, Tensor]:
    """Returns (logprobs, entropies) of the same distributions, [N] nats each. Args as in token_logprobs_from_hidden."""
    return _chunked(hidden, lm_head_weight, ids, temperature, chunk_size, with_entropy=True)


def sequence_logprobs(logprobs: Tensor, completion_mask: Tensor) -> Tensor:
    """Returns the sum of each completion's log-probabilities, [B, T] -> [B] nats; padding may hold anything."""
    require_same_shape(logprobs=logprobs, completion_mask=completion_mask)
    return select(logprobs, completion_mask).sum(-1)


def _chunked(
    hidden: Tensor, lm_head_weight: Tensor, ids: Tensor, temperature: float, chunk_size: int, with_entropy: bool
) -> tuple[Tensor, Tensor]:
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}; it must be at least 1")
    _require_above_zero(temperature)
    require_same_shape(hidden=hidden[..., 0], ids=ids)
    scores: tuple[Tensor, Tensor] = _ChunkedLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden, lm_head_weight, ids, temperature, chunk_size, with_entropy
    )
    return scores


class _ChunkedLogprobs(torch.autograd.Function):
    """Log-probabilities and entropies (zeros if not asked for), [N] each, and their gradients, one chunk at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        ids: Tensor,
        temperature: float,
        chunk_size: int,
        with_entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(hidden, weight, ids)
        ctx.temperature, ctx.chunk_size = temperature, chunk_size
        ctx.set_materialize_grads(False)
        logprobs, entropies = (hidden.new_zeros(len(ids), dtype=_precise(hidden.dtype)) for _ in range(2))
        for chunk in _chunks(len(ids), chunk_size):
            all_logprobs = _all_logprobs(hidden[chunk], weight, temperature)
            logprobs[chunk] = _at_ids(all_logprobs, ids[chunk])
            if with_entropy:
                entropies[chunk] = _entropy(all_logprobs)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_logprobs: Tensor | None, grad_entropies: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        hidden, weight, ids = ctx.saved_tensors
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = weight.new_zeros(weight.shape, dtype=_precise(weight.dtype)) if wants_weight else None
        for chunk in _chunks(len(ids), ctx.chunk_size):
            all_logprobs = _all_logprobs(hidden[chunk], weight, ctx.temperature)
            grad_logits = _grad_logits(
                all_logprobs,
                ids[chunk],
                None if grad_logprobs is None else grad_logprobs[chunk],
                None if grad_entropies is None else grad_entropies[chunk],
            )
            grad_logits = grad_logits.div_(ctx.temperature).to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(grad_logits, weight, out=grad_hidden[chunk])
            if grad_weight is not None:
                grad_weight += grad_logits.T @ hidden[chunk]
        return grad_hidden, grad_weight, None, None, None, None


def _grad_logits(
    all_logprobs: Tensor, ids: Tensor, grad_logprobs: Tensor | None, grad_entropies: Tensor | None
) -> Tensor:
    """Returns the gradient [n, V] of logits / temperature from those of log-probabilities and entropies, [n] each.

    With p the probabilities and h the entropy: d logprob / d logit_v = [v is the id] - p_v, and
    d h / d logit_v = -p_v (log p_v + h). Overwrites `all_logprobs`.
    """
    weights = torch.zeros_like(ids, dtype=all_logprobs.dtype) if grad_logprobs is None else -grad_logprobs
    if grad_entropies is None:
        grad = all_logprobs.exp_().mul_(weights[:, None])
    else:
        probabilities = all_logprobs.exp()
        entropies = -torch.linalg.vecdot(probabilities, all_logprobs)
        factors = all_logprobs.add_(entropies[:, None]).mul_(-grad_entropies[:, None]).add_(weights[:, None])
        grad = factors.mul_(probabilities)
    if grad_logprobs is not None:
        grad[torch.arange(len(ids), device=ids.device), ids] += grad_logprobs
    return grad


def _all_logprobs(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """Returns log softmax of one chunk's logits as a new tensor [n, V] of at least float32."""
    logits = hidden @ weight.T
    scaled = logits if temperature == 1.0 else logits.to(_precise(logits.dtype)).div_(temperature)
    # log_softmax is one fused pass; logit minus logsumexp would be several.
    return scaled.log_softmax(-1, dtype=_precise(logits.dtype))


def _chunks(length: int, chunk_size: int) -> Iterator[slice]:
    for start in range(0, length, chunk_size):
        yield slice(start, min(length, start + chunk_size))


def _precise(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _entropy(all_logprobs: Tensor) -> Tensor:
    return -(all_logprobs.exp() * all_logprobs).sum(-1)


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    """Returns logits / temperature in at least float32, without changing the caller's tensor."""
    _require_above_zero(temperature)
    precise = logits.to(_precise(logits.dtype))
    return precise if temperature == 1.0 else precise / temperature


def _require_above_zero(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; log-probabilities need one above 0")


def _at_ids(x: Tensor, ids: Tensor) -> Tensor:
    return x.gather(-1, ids[..., None]).squeeze(-1)
