"""Logits to log-probabilities, scores to rewards, and preference losses, against plain Python (support/oracles.py)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf.algorithms import logprobs, preference, rewards
from tests.support import oracles

quick = settings(max_examples=50, deadline=None, derandomize=True)
numbers = st.floats(-20.0, 20.0, width=32)
shares = st.floats(0.0, 1.0)
betas = st.floats(0.05, 2.0)


def columns(count: int, elements: st.SearchStrategy[float] = numbers) -> st.SearchStrategy[list[tuple[float, ...]]]:
    """Pairs (or completions), each a tuple of `count` numbers."""
    return st.lists(st.tuples(*[elements] * count), min_size=1, max_size=5)


def tensors(rows: list[tuple[float, ...]]) -> list[Tensor]:
    return [torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True)]


def assert_values(actual: Tensor, expected: list[float]) -> None:
    assert actual.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-6)


def weighted(target: float, loss: float, swapped: float) -> float:
    return target * loss + (1 - target) * swapped


@quick
@given(st.integers(1, 4), st.integers(2, 6), st.floats(0.3, 3.0), st.data())
def test_token_logprobs_and_entropies(num_tokens, vocab_size, temperature, data):
    row = st.lists(numbers, min_size=vocab_size, max_size=vocab_size)
    logits = data.draw(st.lists(row, min_size=num_tokens, max_size=num_tokens))
    ids = data.draw(st.lists(st.integers(0, vocab_size - 1), min_size=num_tokens, max_size=num_tokens))
    tensor, picked = torch.tensor(logits, dtype=torch.float64), torch.tensor(ids)
    expected = [oracles.token_logprobs(row, temperature)[i] for row, i in zip(logits, ids, strict=True)]
    assert_values(logprobs.token_logprobs(tensor, picked, temperature), expected)
    # Under an identity as output projection the hidden states are the logits.
    identity = torch.eye(vocab_size, dtype=torch.float64)
    assert_values(logprobs.token_logprobs_from_hidden(tensor, identity, picked, temperature, 2), expected)
    assert_values(logprobs.entropy(tensor, temperature), [oracles.entropy(row, temperature) for row in logits])


@quick
@given(st.lists(st.lists(numbers, min_size=1, max_size=5), min_size=1, max_size=4))
def test_sequence_logprobs(rows):
    padded = torch.tensor([[*row, *[math.nan] * (6 - len(row))] for row in rows], dtype=torch.float64)
    assert_values(logprobs.sequence_logprobs(padded, ~padded.isnan()), [math.fsum(row) for row in rows])


@quick
@given(st.lists(st.lists(numbers, max_size=6), min_size=1, max_size=5))
def test_running_moments_do_not_depend_on_the_batches(batches):
    moments, seen = rewards.RunningMoments(), []
    for batch in batches:
        moments.update(torch.tensor(batch))
        seen += batch
        assert moments.count == len(seen)
        if seen:
            assert moments.mean == pytest.approx(oracles.mean(seen), rel=1e-6, abs=1e-6)
            assert moments.std == pytest.approx(math.sqrt(oracles.variance(seen)), rel=1e-6, abs=1e-6)


@quick
@given(st.lists(numbers, min_size=1, max_size=6), st.floats(0.1, 10.0), st.data())
def test_clipping_and_penalties_of_rewards(values, bound, data):
    clipped, was_clipped = rewards.clip_rewards(torch.tensor(values, dtype=torch.float64), bound)
    assert_values(clipped, [oracles.clip(x, -bound, bound) for x in values])
    assert was_clipped.tolist() == [abs(x) > bound for x in values]
    stopped = [x > 0 for x in values]
    penalties = rewards.missing_stop_penalty(torch.tensor(stopped), bound)
    assert_values(penalties, [0.0 if stop else -bound for stop in stopped])
    limit = data.draw(st.integers(1, 50))
    buffer = data.draw(st.integers(1, limit))
    lengths = data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=5))
    expected = [oracles.overlong(length, limit, buffer) for length in lengths]
    assert_values(rewards.overlong_penalty(torch.tensor(lengths), limit, buffer), expected)


@quick
@given(columns(4), st.sampled_from([0.0, 0.1, 2.0]), st.booleans())
def test_bradley_terry_losses(pairs, center_coef, soft):
    pairs = [(c, r, m, oracles.sigmoid(t) if soft else 1.0) for c, r, m, t in pairs]
    chosen, rejected, margin, target = tensors(pairs)
    actual = preference.bradley_terry_loss(chosen, rejected, margin, center_coef, target if soft else None)
    assert_values(actual, [oracles.bradley_terry(c, r, m, center_coef, t) for c, r, m, t in pairs])


@quick
@given(st.lists(numbers, min_size=2, max_size=5), st.booleans(), st.sampled_from([0.0, 0.1]))
def test_ranking_losses(scores, with_margins, center_coef):
    k = len(scores)
    margins = [[0.1 * (j - i) if j > i and with_margins else math.nan for j in range(k)] for i in range(k)]
    actual = preference.ranking_loss(
        torch.tensor(scores, dtype=torch.float64),
        torch.tensor(margins, dtype=torch.float64) if with_margins else None,
        center_coef,
    )
    pairs = [
        oracles.bradley_terry(scores[i], scores[j], margins[i][j] if with_margins else 0.0, center_coef, 1.0)
        for i in range(k)
        for j in range(i + 1, k)
    ]
    assert len(pairs) == k * (k - 1) // 2
    assert float(actual) == pytest.approx(oracles.mean(pairs), rel=1e-6, abs=1e-6)


@quick
@given(columns(5), st.sampled_from(["sigmoid", "robust", "hinge", "ipo"]), betas, st.floats(0.0, 0.45), st.booleans())
def test_dpo_losses(pairs, variant, beta, smoothing, soft):
    e = smoothing if variant in ("sigmoid", "robust") else 0.0
    pairs = [(*logps, oracles.sigmoid(t) if soft else 1.0) for *logps, t in pairs]
    *logps, target = tensors(pairs)
    lengths = [(1 + i, 7 - i) for i in range(len(pairs))]
    chosen_lengths, rejected_lengths = torch.tensor(lengths).T
    result = preference.dpo_loss(
        *logps, beta, variant, e, chosen_lengths, rejected_lengths, target=target if soft else None
    )
    expected = [
        weighted(
            t,
            oracles.dpo(variant, pc, pr, fc, fr, beta, e, length),
            oracles.dpo(variant, pr, pc, fr, fc, beta, e, length[::-1]),
        )
        for (pc, pr, fc, fr, t), length in zip(pairs, lengths, strict=True)
    ]
    assert_values(result.losses, expected)
    assert_values(result.chosen_rewards, [beta * (pc - fc) for pc, _, fc, _, _ in pairs])
    assert_values(result.rejected_rewards, [beta * (pr - fr) for _, pr, _, fr, _ in pairs])


@quick
@given(columns(3), numbers, betas, st.tuples(shares, shares))
def test_kto_losses(rows, kl, beta, weights):
    completions = [(lp, lf, x > 0) for lp, lf, x in rows]
    logps, ref_logps, _ = tensors(rows)
    desirable = torch.tensor([good for _, _, good in completions])
    result = preference.kto_loss(logps, ref_logps, desirable, kl, beta, *weights)
    assert_values(result.losses, [oracles.kto(*x, kl, beta, weights) for x in completions])
    assert_values(result.rewards, [beta * (lp - lf) for lp, lf, _ in completions])


@quick
@given(columns(2, st.floats(-8.0, -0.01)), betas, shares)
def test_losses_without_a_reference(pairs, beta, margin):
    chosen, rejected = tensors(pairs)
    simpo, orpo = preference.simpo_loss(chosen, rejected, beta, margin), preference.orpo_loss(chosen, rejected, beta)
    assert_values(simpo.losses, [oracles.simpo(*pair, beta, margin) for pair in pairs])
    assert_values(orpo.losses, [oracles.orpo(*pair, beta) for pair in pairs])
    for result in (simpo, orpo):
        assert_values(result.chosen_rewards, [beta * c for c, _ in pairs])
        assert_values(result.rejected_rewards, [beta * r for _, r in pairs])
