"""What can be said of a batch before the update: rewards, distance from the reference, how well the critic knew."""

from torch import Tensor

from rlhf.algorithms.kl import kl_estimate
from rlhf.algorithms.masking import masked_mean, select
from rlhf.learning.algorithm import Estimates, Scored
from rlhf.learning.batch import Batch


def describe_batch(batch: Batch, scored: Scored, estimates: Estimates) -> dict[str, float]:
    """Returns metrics (step_metrics.py has their units) of all completions, whether they are trained on or not."""
    mask, old_logprobs = batch.completion_mask, scored.old_logprobs
    kl = select(kl_estimate(old_logprobs, batch.ref_logprobs, "k1"), mask)
    mismatch = (old_logprobs - batch.sampler_logprobs).abs()
    metrics = {
        "reward_mean": float(batch.rewards.mean()),
        "reward_std": float(batch.rewards.std(correction=0)),
        "kl": float(kl.sum(-1).mean()),
        "kl_per_token": float(kl.sum() / mask.sum()),
        "kl_coef": scored.kl_coef,
        "entropy": float(masked_mean(scored.entropies, mask)),
        "sampler_mismatch": float(masked_mean(mismatch, mask)),
        "sampler_mismatch_k3": float(masked_mean(kl_estimate(batch.sampler_logprobs, old_logprobs, "k3"), mask)),
    }
    if estimates.old_values is not None and estimates.returns is not None:
        metrics |= _describe_values(estimates.old_values, estimates.returns, estimates.mask)
    return metrics


def _describe_values(values: Tensor, returns: Tensor, mask: Tensor) -> dict[str, float]:
    if not mask.any():
        return {"value_mean": 0.0, "value_explained_variance": 0.0}
    variance = float(returns[mask].var(correction=0))
    errors = float((returns - values)[mask].var(correction=0))
    return {
        "value_mean": float(masked_mean(values, mask)),
        "value_explained_variance": 1.0 - errors / variance if variance > 0 else 0.0,
    }
