"""Training on preferences directly, without a reward model: DPO and its relatives.

data.py                  pairs, or completions judged on their own
reference_logprobs.py    their log-probabilities under the reference, computed once
tasks.py                 the losses
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from transformers import PreTrainedTokenizerBase

from rlhf.data.preferences import split_by_prompt
from rlhf.learning.ranks import Ranks
from rlhf.models.loading import max_positions, tokenizer_digest
from services.trainer.config.offline import DpoDataConfig, DpoRunConfig
from services.trainer.offline.dpo.data import (
    DpoExample,
    KtoExample,
    LogpsOf,
    add_reference_to_judged,
    add_reference_to_pairs,
    load_judged,
    load_pairs,
    with_other_completions,
)
from services.trainer.offline.dpo.reference_logprobs import PromptedCompletion, ReferenceLogprobs
from services.trainer.offline.dpo.tasks import DpoTask, KtoTask
from services.trainer.offline.policy_training import Split, train_policy


def run_dpo(config: DpoRunConfig, *, resume: bool, console: Console) -> int:
    """Trains to the end; returns the exit code: 0 finished, with the policy in RUN_DIR/final; 128 + the number of the
    signal that stopped it before, with a checkpoint.

    Raises: ConfigError for a model, data or directory that cannot be used; NotReadyError if the reference service is
        needed and stays away; RunError for a run that cannot go on.
    """
    if config.dpo.variant == "kto":
        return train_policy(
            config,
            "KTO",
            lambda tokenizer, ranks, say: _load_judged(config, tokenizer, ranks, say, console),
            lambda policy, ranks: KtoTask(policy, config.dpo, config.training.micro_batch_tokens, ranks),
            resume=resume,
            console=console,
        )
    return train_policy(
        config,
        "DPO" if config.dpo.variant == "sigmoid" else config.dpo.variant.upper(),
        lambda tokenizer, ranks, say: _load_pairs(config, tokenizer, ranks, say, console),
        lambda policy, _: DpoTask(policy, config.dpo),
        resume=resume,
        console=console,
    )


def _load_pairs(
    config: DpoRunConfig, tokenizer: PreTrainedTokenizerBase, ranks: Ranks, say: Callable[[str], None], console: Console
) -> Split[DpoExample]:
    examples = load_pairs(_within_positions(config), tokenizer, say)
    if config.dpo.needs_reference:
        examples = add_reference_to_pairs(examples, _reference(config, tokenizer, ranks, console))
    return split_by_prompt(examples, config.data.heldout_fraction, config.training.seed)


def _load_judged(
    config: DpoRunConfig, tokenizer: PreTrainedTokenizerBase, ranks: Ranks, say: Callable[[str], None], console: Console
) -> Split[KtoExample]:
    data = _within_positions(config)
    examples = with_other_completions(load_judged(data, tokenizer, say), data.max_tokens)
    examples = add_reference_to_judged(examples, _reference(config, tokenizer, ranks, console))
    return split_by_prompt(examples, config.data.heldout_fraction, config.training.seed)


def _within_positions(config: DpoRunConfig) -> DpoDataConfig:
    """Returns the data's section with max_tokens no larger than the model has positions for."""
    limit = min(config.data.max_tokens, max_positions(config.model.path))
    return config.data.model_copy(update={"max_tokens": limit})


def _reference(config: DpoRunConfig, tokenizer: PreTrainedTokenizerBase, ranks: Ranks, console: Console) -> LogpsOf:
    """Returns what gives the reference's log-probabilities; the first rank asks, and sends them to the others."""
    reference = ReferenceLogprobs(
        config.services,
        tokenizer_digest=tokenizer_digest(tokenizer),
        data_path=config.data.path,
        run_dir=config.run_dir,
        console=console,
    )

    def logps_of(completions: Sequence[PromptedCompletion]) -> list[float]:
        found = json.dumps(reference.logps(completions)).encode() if ranks.is_main else b""
        answer: Any = json.loads(ranks.gather_bytes(found)[0])
        return [float(each) for each in answer]

    return logps_of
