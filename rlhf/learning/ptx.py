"""PTX: some demonstrations in every optimizer step, so that the policy keeps what it knew (InstructGPT's PPO-ptx)."""

import random
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from rlhf.algorithms.logprobs import sequence_logprobs
from rlhf.data.chat import ChatExample
from rlhf.learning.config import PtxConfig
from rlhf.learning.ranks import Ranks
from rlhf.learning.steps import MicroLoss
from rlhf.models.policy_model import PolicyModel, completion_logprobs
from rlhf.models.sequences import PaddedSequences, pad_sequences, split_by_tokens


class Ptx:
    """Adds coef * mean negative log-likelihood per token of demonstrations to the policy's gradient."""

    def __init__(
        self,
        demonstrations: Sequence[ChatExample],
        config: PtxConfig,
        *,
        seed: int,
        micro_batch_tokens: int,
        ranks: Ranks,
    ) -> None:
        """Args: demonstrations: at least one; the draw depends on the seed and on what losses() is told alone."""
        self._demonstrations = demonstrations
        self._config = config
        self._seed = seed
        self._micro_batch_tokens = micro_batch_tokens
        self._ranks = ranks

    def draw(self, key: str) -> list[ChatExample]:
        """Returns the demonstrations of one optimizer step: different ones, as many as there are at most."""
        count = min(self._config.examples_per_minibatch, len(self._demonstrations))
        return random.Random(f"ptx {self._seed} {key}").sample(self._demonstrations, count)

    def losses(self, policy: PolicyModel, key: str, device: torch.device) -> Iterator[MicroLoss]:
        """Yields this rank's shares of the weighted loss, each computed when it is its turn.

        Args: key: names the optimizer step within the run. device: where the policy is.
        """
        drawn = self.draw(key)
        num_tokens = sum(each.num_trained for each in drawn)
        groups = split_by_tokens([len(each.token_ids) for each in drawn], self._micro_batch_tokens)
        for share in self._ranks.share(groups):
            sequences, trained = pad_examples([drawn[index] for index in share.item])
            # Likelihood is that of the model as it is, whatever temperature completions are sampled at.
            logprobs = completion_logprobs(policy, sequences.to(device), 1.0)
            loss = -sequence_logprobs(logprobs, trained.to(device)).sum() / num_tokens
            yield MicroLoss(self._config.coef * loss, {"ptx_loss": loss.detach()}, share.weight)


def pad_examples(examples: Sequence[ChatExample]) -> tuple[PaddedSequences, Tensor]:
    """Returns the examples, all from the first trained token on as completion; and which of it is trained, [B, T]."""
    starts = [len(each.prompt_ids) for each in examples]
    sequences = pad_sequences(
        [each.token_ids[:start] for each, start in zip(examples, starts, strict=True)],
        [each.token_ids[start:] for each, start in zip(examples, starts, strict=True)],
    )
    trained = torch.zeros(sequences.completion_mask.shape, dtype=torch.bool)
    for row, each, start in zip(trained, examples, starts, strict=True):
        row[: len(each.token_ids) - start] = torch.tensor(each.trained[start:])
    return sequences, trained
