"""The losses on preferences: on pairs (DPO, IPO, hinge, robust DPO, SimPO, ORPO), and on single judgements (KTO)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf.algorithms.logprobs import sequence_logprobs
from rlhf.algorithms.preference import PreferenceLoss, dpo_loss, kto_loss, orpo_loss, simpo_loss
from rlhf.algorithms.variants import PAIR_VARIANTS
from rlhf.learning.ranks import Ranks
from rlhf.models.policy_model import PolicyModel, completion_logprobs
from rlhf.models.sequences import pad_sequences, split_by_tokens
from services.trainer.config.offline import DpoConfig
from services.trainer.offline.dpo.data import DpoExample, KtoExample
from services.trainer.offline.dpo.reference_logprobs import Ids
from services.trainer.offline.fit import Task

SUMS = ("chosen_reward", "rejected_reward", "chosen_logp", "rejected_logp", "accuracy", "log_ratio")


@dataclass(frozen=True, slots=True)
class Pairs:
    """The log-probabilities of P pairs under the policy, with gradient, and the reference's; nats a completion."""

    chosen: Tensor
    rejected: Tensor
    ref_chosen: Tensor
    ref_rejected: Tensor
    chosen_lengths: Tensor
    rejected_lengths: Tensor
    target: Tensor
    """Probability that the chosen one is the better one."""


class DpoTask(Task[DpoExample]):
    """The mean loss of the batch's pairs."""

    def __init__(self, policy: PolicyModel, config: DpoConfig) -> None:
        self._policy = policy
        self._config = config

    def num_tokens(self, example: DpoExample) -> int:
        """Returns the tokens of both completions, the prompt counted with each."""
        return 2 * len(example.prompt_ids) + len(example.chosen_ids) + len(example.rejected_ids)

    def loss(self, micro: Sequence[DpoExample], normalizer: float) -> tuple[Tensor, Mapping[str, float]]:
        """Returns the pairs' share of the loss, and sums of what describe() needs."""
        pairs = _score(self._policy, micro)
        result = pair_loss(pairs, self._config)
        losses = result.losses
        if self._config.nll_coef > 0:
            losses = losses - self._config.nll_coef * pairs.chosen / pairs.chosen_lengths
        margins = result.chosen_rewards - result.rejected_rewards
        log_ratios = torch.cat([pairs.chosen - pairs.ref_chosen, pairs.rejected - pairs.ref_rejected])
        values = (
            result.chosen_rewards,
            result.rejected_rewards,
            pairs.chosen,
            pairs.rejected,
            # Equal rewards count half.
            (margins.sign() + 1) / 2,
            log_ratios / 2,
        )
        sums = {name: float(value.detach().sum()) for name, value in zip(SUMS, values, strict=True)}
        return losses.sum() / normalizer, {**sums, "pairs": float(len(micro))}

    def describe(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Returns means over the pairs: implied rewards, their margin, the share ranked right, log-probabilities.

        "log_ratio" is log policy - log reference of a completion, chosen and rejected alike, in nats.
        """
        means = {name: sums[name] / sums["pairs"] for name in SUMS}
        if not self._config.needs_reference:
            del means["log_ratio"]
        return {**means, "margin": means["chosen_reward"] - means["rejected_reward"], "pairs": sums["pairs"]}


def pair_loss(pairs: Pairs, config: DpoConfig) -> PreferenceLoss:
    """Returns the configured loss of each pair, [P], without the NLL term."""
    if config.variant in PAIR_VARIANTS:
        return dpo_loss(
            pairs.chosen,
            pairs.rejected,
            pairs.ref_chosen,
            pairs.ref_rejected,
            beta=config.beta_in_use,
            variant=config.variant,
            label_smoothing=config.label_smoothing,
            chosen_lengths=pairs.chosen_lengths,
            rejected_lengths=pairs.rejected_lengths,
            target=pairs.target,
        )
    chosen, rejected = pairs.chosen / pairs.chosen_lengths, pairs.rejected / pairs.rejected_lengths
    right, wrong = _without_reference(chosen, rejected, config), _without_reference(rejected, chosen, config)
    losses = pairs.target * right.losses + (1 - pairs.target) * wrong.losses
    return PreferenceLoss(losses, right.chosen_rewards, right.rejected_rewards)


def _without_reference(chosen_avg: Tensor, rejected_avg: Tensor, config: DpoConfig) -> PreferenceLoss:
    if config.variant == "simpo":
        return simpo_loss(chosen_avg, rejected_avg, beta=config.beta_in_use, margin=config.simpo_margin)
    return orpo_loss(chosen_avg, rejected_avg, odds_weight=config.odds_weight)


def completion_logps(policy: PolicyModel, prompts: Sequence[Ids], completions: Sequence[Ids]) -> Tensor:
    """Returns the log-probability of each completion after its prompt, summed over its tokens: [N] nats."""
    sequences = pad_sequences(prompts, completions).to(next(policy.parameters()).device)
    return sequence_logprobs(completion_logprobs(policy, sequences, temperature=1.0), sequences.completion_mask)


def _score(policy: PolicyModel, micro: Sequence[DpoExample]) -> Pairs:
    prompts = [example.prompt_ids for example in micro]
    chosen_ids, rejected_ids = [each.chosen_ids for each in micro], [each.rejected_ids for each in micro]
    chosen, rejected = completion_logps(policy, prompts * 2, chosen_ids + rejected_ids).chunk(2)

    def tensor(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=chosen.device)

    return Pairs(
        chosen,
        rejected,
        ref_chosen=tensor([each.ref_chosen_logp for each in micro]),
        ref_rejected=tensor([each.ref_rejected_logp for each in micro]),
        chosen_lengths=tensor([len(ids) for ids in chosen_ids]),
        rejected_lengths=tensor([len(ids) for ids in rejected_ids]),
        target=tensor([each.target for each in micro]),
    )


class KtoTask(Task[KtoExample]):
    """The mean loss of the batch's completions, around a KL that is estimated from the batch."""

    def __init__(self, policy: PolicyModel, config: DpoConfig, micro_batch_tokens: int, ranks: Ranks) -> None:
        self._policy = policy
        self._config = config
        self._micro_batch_tokens = micro_batch_tokens
        self._ranks = ranks
        self._kl = 0.0

    def num_tokens(self, example: KtoExample) -> int:
        """Returns the tokens of prompt and completion."""
        return len(example.prompt_ids) + len(example.completion_ids)

    @torch.no_grad()
    def prepare(self, batch: Sequence[KtoExample]) -> None:
        """Estimates the KL to the reference: the mean log-ratio of other prompts' completions, in nats, at least 0."""
        others = [example for example in batch if example.other_ids]
        if not others:
            self._kl = 0.0
            return
        lengths = [len(example.prompt_ids) + len(example.other_ids) for example in others]
        groups = split_by_tokens(lengths, self._micro_batch_tokens)
        total = 0.0
        for share in self._ranks.share(groups):
            micro = [others[index] for index in share.item]
            logps = completion_logps(
                self._policy, [each.prompt_ids for each in micro], [each.other_ids for each in micro]
            )
            ratios = logps - torch.tensor([each.ref_other_logp for each in micro], device=logps.device)
            total += float(ratios.sum()) if share.weight else 0.0
        self._kl = max(0.0, self._ranks.sum_values({"total": total})["total"] / len(others))

    def loss(self, micro: Sequence[KtoExample], normalizer: float) -> tuple[Tensor, Mapping[str, float]]:
        """Returns the completions' share of the loss, and sums of what describe() needs."""
        logps = completion_logps(
            self._policy, [each.prompt_ids for each in micro], [each.completion_ids for each in micro]
        )
        good = torch.tensor([each.is_desirable for each in micro], device=logps.device)
        result = kto_loss(
            logps,
            torch.tensor([each.ref_logp for each in micro], device=logps.device),
            good,
            self._kl,
            beta=self._config.beta_in_use,
            desirable_weight=self._config.desirable_weight,
            undesirable_weight=self._config.undesirable_weight,
        )
        sums: dict[str, float] = {"kl": self._kl * len(micro), "completions": float(len(micro))}
        for name, mask in (("desirable", good), ("undesirable", ~good)):
            sums[f"{name}_reward"] = float(result.rewards[mask].sum())
            sums[f"{name}_logp"] = float(logps.detach()[mask].sum())
            sums[name] = float(mask.sum())
        return result.losses.sum() / normalizer, sums

    def describe(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Returns the KL, and means over the good and the bad completions; of a kind that the batch lacks, nothing."""
        metrics = {"kl": sums["kl"] / sums["completions"], "completions": sums["completions"]}
        for kind in ("desirable", "undesirable"):
            if sums[kind] > 0:
                for name in (f"{kind}_reward", f"{kind}_logp"):
                    metrics[name] = sums[name] / sums[kind]
        if sums["desirable"] > 0 and sums["undesirable"] > 0:
            metrics["margin"] = metrics["desirable_reward"] - metrics["undesirable_reward"]
        return metrics
