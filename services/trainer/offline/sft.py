"""Supervised fine-tuning: the policy learns to say what the assistant said."""

import math
from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlhf.algorithms.masking import select
from rlhf.data.chat import ChatExample, load_chat_examples
from rlhf.data.preferences import split_by_prompt
from rlhf.learning.ptx import pad_examples
from rlhf.learning.ranks import Ranks
from rlhf.models.loading import max_positions
from rlhf.models.policy_model import PolicyModel, completion_logprobs
from services.trainer.config.offline import SftRunConfig
from services.trainer.offline.fit import Task
from services.trainer.offline.policy_training import Split, train_policy


class SftTask(Task[ChatExample]):
    """The mean negative log-likelihood of the trained tokens of the whole batch, each counting the same."""

    def __init__(self, policy: PolicyModel) -> None:
        self._policy = policy

    def num_tokens(self, example: ChatExample) -> int:
        """Returns the tokens of the conversation."""
        return len(example.token_ids)

    def normalizer(self, batch: Sequence[ChatExample]) -> float:
        """Returns the trained tokens of the batch."""
        return float(sum(example.num_trained for example in batch))

    def loss(self, micro: Sequence[ChatExample], normalizer: float) -> tuple[Tensor, Mapping[str, float]]:
        """Returns the examples' share of the loss, and sums of what describe() needs."""
        device = next(self._policy.parameters()).device
        # What the user said after the assistant's first turn is scored with the rest, and left out of the sum.
        sequences, trained = pad_examples(micro)
        logprobs = completion_logprobs(self._policy, sequences.to(device), temperature=1.0)
        total = -select(logprobs, trained.to(device)).sum()
        sums = {"nats": float(total.detach()), "trained_tokens": float(trained.sum())}
        return total / normalizer, sums

    def describe(self, sums: Mapping[str, float]) -> dict[str, float]:
        """Returns the perplexity of the trained tokens, and how many there were."""
        mean = sums["nats"] / sums["trained_tokens"]
        # Beyond 700 nats a token the exponential is no float.
        return {"perplexity": math.exp(min(mean, 700.0)), "trained_tokens": sums["trained_tokens"]}


def run_sft(config: SftRunConfig, *, resume: bool, console: Console) -> int:
    """Trains to the end; returns the exit code: 0 finished, with the policy in RUN_DIR/final; 128 + the number of the
    signal that stopped it before, with a checkpoint.

    Raises: ConfigError for a model, data or directory that cannot be used; RunError for a run that cannot go on.
    """

    def load(tokenizer: PreTrainedTokenizerBase, _: Ranks, say: Callable[[str], None]) -> Split[ChatExample]:
        data = config.data
        limit = min(data.max_tokens, max_positions(config.model.path))
        loaded = load_chat_examples(data.path, tokenizer, max_tokens=limit, split=data.split, train_on=data.train_on)
        for reason, count in sorted(loaded.skipped.items()):
            say(f"{count} examples left out: {reason} (the limit is {limit} tokens)")
        return split_by_prompt(loaded.examples, data.heldout_fraction, config.training.seed)

    return train_policy(config, "SFT", load, lambda policy, _: SftTask(policy), resume=resume, console=console)
