"""KTO: completions that were found good or bad by themselves (arXiv:2402.01306)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from rlhf.algorithms.preference import kto_loss
from rlhf.learning.ranks import Ranks
from rlhf.models.policy_model import PolicyModel
from rlhf.models.sequences import split_by_tokens
from services.trainer.config.offline_dpo import DpoConfig
from services.trainer.offline.dpo.data import KtoExample
from services.trainer.offline.dpo.tasks import completion_logps


class KtoTask:
    """A fit.Task: the mean loss of the batch's completions, around a KL that is estimated from the batch."""

    def __init__(self, policy: PolicyModel, config: DpoConfig, micro_batch_tokens: int, ranks: Ranks) -> None:
        self._policy = policy
        self._config = config
        self._micro_batch_tokens = micro_batch_tokens
        self._ranks = ranks
        self._kl = 0.0

    def num_tokens(self, example: KtoExample) -> int:
        """Returns the tokens of prompt and completion."""
        return len(example.prompt_ids) + len(example.completion_ids)

    def normalizer(self, batch: Sequence[KtoExample]) -> float:
        """Returns the number of completions."""
        return float(len(batch))

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
