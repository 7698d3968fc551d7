"""Every per-token function against the same formula in plain Python (support/oracles.py), on random shapes and masks.

All in float64, to 1e-6, and with NaN wherever there is padding.
"""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlhf.algorithms import advantages, kl, losses
from tests.support import oracles

quick = settings(max_examples=50, deadline=None, derandomize=True)
numbers = st.floats(-2.0, 2.0, width=32)
factors = st.floats(0.0, 1.0)
epsilons = st.floats(0.05, 0.9)
MODES = ("token-mean", "sequence-mean-token-sum", "sequence-mean-token-mean", "token-sum-over-constant")
Rows = list[list[float]]


@st.composite
def ragged(draw: st.DrawFn, count: int) -> list[Rows]:
    """`count` times rows of numbers; row i has the same length, at least 1, in each."""
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    return [[draw(st.lists(numbers, min_size=n, max_size=n)) for n in lengths] for _ in range(count)]


@st.composite
def grouped(draw: st.DrawFn) -> tuple[list[float], list[int]]:
    """Rewards and group ids: groups of 2 to 4, shuffled, of rewards that are often equal."""
    ids = [g for g in draw(st.sets(st.integers(-9, 9), min_size=1, max_size=3)) for _ in range(draw(st.integers(2, 4)))]
    some = st.one_of(st.sampled_from([0.1, 0.7, 1.0]), numbers)
    return draw(st.lists(some, min_size=len(ids), max_size=len(ids))), draw(st.permutations(ids))


def padded(rows: Rows, extra: int = 1) -> Tensor:
    """[B, T] float64 with NaN at padding, of which every row has some."""
    width = max(map(len, rows)) + extra
    return torch.tensor([[*row, *[math.nan] * (width - len(row))] for row in rows], dtype=torch.float64)


def mask_of(rows: Rows, extra: int = 1) -> Tensor:
    return ~padded(rows, extra).isnan()


def assert_rows(actual: Tensor, expected: Rows) -> None:
    """Equal to 1e-6 at the tokens, and exactly 0 at padding."""
    reference = padded(expected).nan_to_num(nan=0.0)
    torch.testing.assert_close(actual, reference, rtol=1e-6, atol=1e-6)
    assert not actual[padded(expected).isnan()].any()


def map_rows(function: Callable[..., float], *rows: Rows) -> Rows:
    return [[function(*token) for token in zip(*row, strict=True)] for row in zip(*rows, strict=True)]


@quick
@given(ragged(2), st.sampled_from(["k1", "k2", "k3"]))
def test_kl_estimates(batch, estimator):
    lp, lf = batch
    estimates = kl.kl_estimate(padded(lp), padded(lf), estimator).masked_fill(~mask_of(lp), 0.0)
    assert_rows(estimates, map_rows(lambda p, f: oracles.kl(estimator, p, f), lp, lf))


@quick
@given(ragged(2), st.data(), factors)
def test_token_rewards(batch, data, kl_coef):
    lp, lf = batch
    scores = data.draw(st.lists(numbers, min_size=len(lp), max_size=len(lp)))
    expected = [oracles.token_rewards(*row, kl_coef) for row in zip(scores, lp, lf, strict=True)]
    scores = torch.tensor(scores, dtype=torch.float64)
    assert_rows(kl.token_rewards(scores, padded(lp), padded(lf), mask_of(lp), kl_coef), expected)


@quick
@given(st.lists(st.tuples(st.floats(-1, 40), st.integers(1, 100)), min_size=1, max_size=6), st.floats(0.01, 10))
def test_the_adaptive_kl_controller(batches, target):
    controller = kl.AdaptiveKlController(0.1, target=target, horizon=1000.0)
    expected = 0.1
    for value, num_samples in batches:
        controller.update(value, num_samples)
        expected *= 1 + oracles.clip(value / target - 1, -0.2, 0.2) * num_samples / 1000
    assert controller.coef == pytest.approx(expected, rel=1e-9)


@quick
@given(ragged(2), factors, factors)
def test_gae(batch, gamma, gae_lambda):
    expected = [oracles.gae(*row, gamma, gae_lambda) for row in zip(*batch, strict=True)]
    result = advantages.gae(padded(batch[0]), padded(batch[1]), mask_of(batch[0]), gamma, gae_lambda)
    for actual, rows in zip(result, zip(*expected, strict=True), strict=True):
        assert_rows(actual, list(rows))


@quick
@given(ragged(1), factors)
def test_discounted_returns(batch, gamma):
    returns = advantages.discounted_returns(padded(batch[0]), mask_of(batch[0]), gamma)
    assert_rows(returns, [oracles.discounted(row, gamma) for row in batch[0]])


@quick
@given(ragged(1), st.booleans())
def test_whitening(batch, shift_mean):
    rows = batch[0]
    assert_rows(advantages.whiten(padded(rows), mask_of(rows), shift_mean), oracles.whiten(rows, shift_mean))


@quick
@given(grouped())
def test_group_advantages(group):
    values, ids = group
    arguments = torch.tensor(values, dtype=torch.float64), torch.tensor(ids)
    centered = oracles.group_relative(values, ids, False)
    for actual, expected in (
        (advantages.group_relative(*arguments), oracles.group_relative(values, ids, True)),
        (advantages.group_relative(*arguments, normalize_std=False), centered),
        (advantages.group_centered(*arguments), centered),
        (advantages.leave_one_out(*arguments), oracles.leave_one_out(values, ids)),
    ):
        assert actual.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-6)
    uniform = [len(set(oracles.members(values, ids, g))) == 1 for g in ids]
    assert advantages.uniform_groups(*arguments).tolist() == uniform


@quick
@given(ragged(3), epsilons, epsilons, st.one_of(st.none(), st.floats(1.1, 4.0)))
def test_policy_losses(batch, low, high, dual_clip):
    result = losses.clipped_policy_loss(
        *map(padded, batch), mask_of(batch[0]), clip_eps_low=low, clip_eps_high=high, dual_clip=dual_clip
    )
    assert_rows(result.token_losses, map_rows(lambda *x: oracles.policy_loss(*x, low, high, dual_clip), *batch))
    moved = map_rows(
        lambda p, o, a: float(oracles.policy_loss(p, o, a, low, high, dual_clip) != -(math.exp(p - o) * a)), *batch
    )
    assert_rows(result.clipped.double(), moved)


@quick
@given(ragged(3), epsilons)
def test_value_losses(batch, eps):
    result = losses.clipped_value_loss(*map(padded, batch), mask_of(batch[0]), value_clip_eps=eps)
    assert_rows(result.token_losses, map_rows(lambda *x: oracles.value_loss(*x, eps), *batch))


@quick
@given(ragged(1))
def test_entropy_bonuses(batch):
    assert_rows(losses.entropy_bonus(padded(batch[0]), mask_of(batch[0])), map_rows(lambda x: -x, batch[0]))


@quick
@given(ragged(2), st.floats(0.5, 5.0), st.floats(1.05, 3.0))
def test_off_policy_correction(batch, cap, bound):
    lo, ls = batch
    arguments = padded(lo), padded(ls), mask_of(lo)
    weights, clamped = losses.truncated_importance_weights(*arguments, cap)
    assert_rows(weights, map_rows(lambda o, s: min(math.exp(o - s), cap), lo, ls))
    assert_rows(clamped.double(), map_rows(lambda o, s: float(math.exp(o - s) > cap), lo, ls))
    kept = [oracles.keeps_ratio(*row, bound) for row in zip(lo, ls, strict=True)]
    assert losses.sequence_ratio_mask(*arguments, bound).tolist() == kept


@quick
@given(ragged(1), st.sampled_from(MODES), st.data())
def test_aggregation_does_not_depend_on_the_micro_batches(batch, mode, data):
    # Some tokens, and with them whole rows, are masked out as an algorithm may.
    rows, mask = batch[0], mask_of(batch[0])
    dropped = torch.tensor(data.draw(st.lists(st.booleans(), min_size=mask.numel(), max_size=mask.numel())))
    mask &= dropped.reshape(mask.shape) | (torch.arange(mask.shape[1]) + torch.arange(len(rows))[:, None] == 0)
    kept = [[x for x, keep in zip(row, keeps, strict=False) if keep] for row, keeps in zip(rows, mask, strict=True)]
    counts = {
        "num_tokens_global": int(mask.sum()),
        "num_sequences_global": len(rows),
        "max_completion_tokens": 7,
    }
    results = []
    for size in (len(rows), data.draw(st.integers(1, len(rows)))):
        x = padded(rows).requires_grad_()
        order = torch.tensor(data.draw(st.permutations(range(len(rows)))))
        parts = [losses.aggregate(x[i].square(), mask[i], mode, **counts) for i in order.split(size)]
        for part in parts:
            part.backward()
        results.append((sum(part.detach() for part in parts), x.grad))
    squares = map_rows(lambda value: value**2, kept)
    assert float(results[0][0]) == pytest.approx(oracles.aggregate(squares, mode, 7), rel=1e-6, abs=1e-6)
    torch.testing.assert_close(results[1][0], results[0][0])
    torch.testing.assert_close(results[1][1][mask], results[0][1][mask])
