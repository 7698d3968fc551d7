"""What the functions of `algorithms` say, written down a second time: plain Python loops, straight from the formulas.

A row holds the real tokens alone, so padding does not exist here.
"""

import math
from collections.abc import Sequence

Row = Sequence[float]
Rows = Sequence[Row]


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


def sigmoid(x: float) -> float:
    return math.exp(log_sigmoid(x))


def clip(x: float, low: float, high: float) -> float:
    return max(low, min(x, high))


def mean(values: Row) -> float:
    return math.fsum(values) / len(values)


def variance(values: Row, correction: int = 0) -> float:
    center = mean(values)
    return math.fsum((x - center) ** 2 for x in values) / (len(values) - correction)


def token_logprobs(logits: Row, temperature: float) -> list[float]:
    exps = [math.exp(logit / temperature) for logit in logits]
    return [math.log(e / math.fsum(exps)) for e in exps]


def entropy(logits: Row, temperature: float) -> float:
    logprobs = token_logprobs(logits, temperature)
    return -math.fsum(math.exp(lp) * lp for lp in logprobs)


def kl(estimator: str, lp: float, lf: float) -> float:
    r = lp - lf
    return {"k1": r, "k2": r * r / 2, "k3": math.exp(-r) - 1 + r}[estimator]


def token_rewards(score: float, lp: Row, lf: Row, kl_coef: float) -> list[float]:
    rewards = [-kl_coef * (p - f) for p, f in zip(lp, lf, strict=True)]
    rewards[-1] += score
    return rewards


def discounted(rewards: Row, gamma: float) -> list[float]:
    return [math.fsum(gamma**k * reward for k, reward in enumerate(rewards[t:])) for t in range(len(rewards))]


def gae(rewards: Row, values: Row, gamma: float, gae_lambda: float) -> tuple[list[float], list[float]]:
    """By the definition: A_t is the sum over k of (gamma lambda)^k delta_{t+k}."""
    following = [*values[1:], 0.0]
    deltas = [r + gamma * after - v for r, v, after in zip(rewards, values, following, strict=True)]
    advantages = discounted(deltas, gamma * gae_lambda)
    return advantages, [a + v for a, v in zip(advantages, values, strict=True)]


def whiten(rows: Rows, shift_mean: bool) -> list[list[float]]:
    everything = [x for row in rows for x in row]
    center, scale = mean(everything), math.sqrt(variance(everything) + 1e-8)
    return [[(x - center) / scale + (0.0 if shift_mean else center) for x in row] for row in rows]


def members(values: Row, groups: Sequence[int], group: int) -> list[float]:
    return [x for x, g in zip(values, groups, strict=True) if g == group]


def group_relative(rewards: Row, groups: Sequence[int], normalize_std: bool) -> list[float]:
    advantages = []
    for reward, group in zip(rewards, groups, strict=True):
        others = members(rewards, groups, group)
        scale = math.sqrt(variance(others, correction=1)) + 1e-6 if normalize_std else 1.0
        advantages.append((reward - mean(others)) / scale)
    return advantages


def leave_one_out(rewards: Row, groups: Sequence[int]) -> list[float]:
    return [
        reward - mean([r for j, r in enumerate(rewards) if j != i and groups[j] == groups[i]])
        for i, reward in enumerate(rewards)
    ]


def policy_loss(lp: float, lo: float, a: float, low: float, high: float, dual_clip: float | None) -> float:
    ratio = math.exp(lp - lo)
    objective = min(ratio * a, clip(ratio, 1 - low, 1 + high) * a)
    return -(max(objective, dual_clip * a) if dual_clip is not None and a < 0 else objective)


def value_loss(value: float, old: float, target: float, eps: float) -> float:
    return 0.5 * max((value - target) ** 2, (clip(value, old - eps, old + eps) - target) ** 2)


def aggregate(rows: Rows, mode: str, max_completion_tokens: int) -> float:
    """Of a whole batch; a row may be empty."""
    total = math.fsum(x for row in rows for x in row)
    if mode == "token-mean":
        return total / sum(len(row) for row in rows)
    if mode == "sequence-mean-token-sum":
        return total / len(rows)
    if mode == "sequence-mean-token-mean":
        return math.fsum(mean(row) for row in rows if row) / len(rows)
    assert mode == "token-sum-over-constant"
    return total / (len(rows) * max_completion_tokens)


def keeps_ratio(lo: Row, ls: Row, bound: float) -> bool:
    """Whether the geometric mean of the ratios is in [1 / bound, bound]."""
    ratio = math.prod(math.exp(o - s) for o, s in zip(lo, ls, strict=True)) ** (1 / len(lo))
    return 1 / bound <= ratio <= bound


def overlong(length: int, limit: int, buffer: int) -> float:
    if length <= limit - buffer:
        return 0.0
    return (limit - buffer - length) / buffer if length <= limit else -1.0


def bradley_terry(chosen: float, rejected: float, margin: float, center_coef: float, target: float) -> float:
    d = chosen - rejected - margin
    return -target * log_sigmoid(d) - (1 - target) * log_sigmoid(-d) + center_coef * (chosen + rejected) ** 2


def dpo(
    variant: str, pc: float, pr: float, fc: float, fr: float, beta: float, e: float, lengths: tuple[int, int]
) -> float:
    """Of a pair whose first completion is the better one."""
    d = beta * ((pc - fc) - (pr - fr))
    if variant == "sigmoid":
        return -(1 - e) * log_sigmoid(d) - e * log_sigmoid(-d)
    if variant == "robust":
        return (-(1 - e) * log_sigmoid(d) + e * log_sigmoid(-d)) / (1 - 2 * e)
    if variant == "hinge":
        return max(0.0, 1 - d)
    assert variant == "ipo"
    return ((pc - fc) / lengths[0] - (pr - fr) / lengths[1] - 1 / (2 * beta)) ** 2


def kto(lp: float, lf: float, desirable: bool, kl: float, beta: float, weights: tuple[float, float]) -> float:
    r, reference = lp - lf, max(0.0, kl)
    if desirable:
        return weights[0] * (1 - sigmoid(beta * (r - reference)))
    return weights[1] * (1 - sigmoid(beta * (reference - r)))


def simpo(chosen: float, rejected: float, beta: float, margin: float) -> float:
    return -log_sigmoid(beta * chosen - beta * rejected - margin)


def orpo(chosen: float, rejected: float, weight: float) -> float:
    better, worse = (math.exp(average) / (1 - math.exp(average)) for average in (chosen, rejected))
    return -chosen - weight * log_sigmoid(math.log(better / worse))
