"""Preferences with what the reference thinks of them: the examples of DPO and its relatives."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from rlhf.data.chat import EMPTY, TOO_LONG, read_chat_example
from rlhf.data.preferences import PreferencePair, load_preferences
from rlhf.data.records import Record, read_records
from rlhf.errors import ConfigError
from services.trainer.config.offline import DpoDataConfig
from services.trainer.offline.dpo.reference_logprobs import Ids, PromptedCompletion

Say = Callable[[str], None]
LogpsOf = Callable[[Sequence[PromptedCompletion]], list[float]]
"""Returns the reference's log-probability of each completion, in nats."""


@dataclass(frozen=True, slots=True)
class DpoExample:
    """Two completions of a prompt. Token ids, none of the lists empty."""

    prompt_ids: Ids
    chosen_ids: Ids
    rejected_ids: Ids
    target: float = 1.0
    """Probability that the chosen one is the better one."""
    ref_chosen_logp: float = 0.0
    """Nats, summed over the completion's tokens; 0 where the loss has no reference."""
    ref_rejected_logp: float = 0.0


@dataclass(frozen=True, slots=True)
class KtoExample:
    """A completion that was found good or bad by itself. Token ids, neither of the first two lists empty."""

    prompt_ids: Ids
    completion_ids: Ids
    is_desirable: bool
    other_ids: Ids = ()
    """A completion of another prompt, to estimate the KL by; empty if none fits."""
    ref_logp: float = 0.0
    """Nats, summed over the completion's tokens."""
    ref_other_logp: float = 0.0
    """The same of other_ids after this prompt."""


def load_pairs(data: DpoDataConfig, tokenizer: PreTrainedTokenizerBase, say: Say) -> list[DpoExample]:
    """Returns the pairs of the data, those of rankings too, without their reference log-probabilities.

    Raises: ConfigError naming the place of what is malformed, or saying that nothing usable is left.
    """
    return [
        DpoExample(pair.prompt_ids, pair.chosen_ids, pair.rejected_ids, pair.target)
        for pair in _preference_pairs(data, tokenizer, say)
    ]


def load_judged(data: DpoDataConfig, tokenizer: PreTrainedTokenizerBase, say: Say) -> list[KtoExample]:
    """Returns completions that are good or bad: from rows with a "label", or both sides of each pair.

    A pair's label counts as certain here, and one without a preference is left out.

    Raises: ConfigError naming the place of what is malformed, or saying that nothing usable is left.
    """
    _, first = next(read_records(data.path, data.split), ("", {}))
    if "completion" in first or isinstance(first.get("label"), bool):
        return _load_labelled(data, tokenizer, say)
    pairs = [pair for pair in _preference_pairs(data, tokenizer, say) if pair.target != 0.5]
    sides = ((pair, ids, good) for pair in pairs for ids, good in ((pair.chosen_ids, True), (pair.rejected_ids, False)))
    return [KtoExample(pair.prompt_ids, ids, good) for pair, ids, good in sides]


def with_other_completions(examples: Sequence[KtoExample], max_tokens: int) -> list[KtoExample]:
    """Returns the examples, each with the next completion of another prompt that fits into max_tokens with its own.

    Raises: ConfigError if all have the same prompt.
    """
    if len({example.prompt_ids for example in examples}) < 2:
        raise ConfigError('dpo.variant is "kto", which needs completions of at least two different prompts; give more')
    result = []
    for index, example in enumerate(examples):
        later = (examples[(index + offset) % len(examples)] for offset in range(1, len(examples)))
        fitting = (
            each.completion_ids
            for each in later
            if each.prompt_ids != example.prompt_ids
            and len(example.prompt_ids) + len(each.completion_ids) <= max_tokens
        )
        result.append(replace(example, other_ids=next(fitting, ())))
    return result


def add_reference_to_pairs(examples: Sequence[DpoExample], logps_of: LogpsOf) -> list[DpoExample]:
    """Returns the pairs with the reference's log-probabilities, each distinct completion asked for once."""
    logps = _ask_once(
        ((each.prompt_ids, ids) for each in examples for ids in (each.chosen_ids, each.rejected_ids)), logps_of
    )
    return [
        replace(
            example,
            ref_chosen_logp=logps[example.prompt_ids, example.chosen_ids],
            ref_rejected_logp=logps[example.prompt_ids, example.rejected_ids],
        )
        for example in examples
    ]


def add_reference_to_judged(examples: Sequence[KtoExample], logps_of: LogpsOf) -> list[KtoExample]:
    """Returns the completions with the reference's log-probabilities, also of the other prompts' completions."""
    wanted = ((each.prompt_ids, ids) for each in examples for ids in (each.completion_ids, each.other_ids) if ids)
    logps = _ask_once(wanted, logps_of)
    return [
        replace(
            example,
            ref_logp=logps[example.prompt_ids, example.completion_ids],
            ref_other_logp=logps[example.prompt_ids, example.other_ids] if example.other_ids else 0.0,
        )
        for example in examples
    ]


def _ask_once(wanted: Iterable[tuple[Ids, Ids]], logps_of: LogpsOf) -> dict[tuple[Ids, Ids], float]:
    distinct = [PromptedCompletion(*each) for each in dict.fromkeys(wanted)]
    return dict(zip(distinct, logps_of(distinct), strict=True))


def _preference_pairs(data: DpoDataConfig, tokenizer: PreTrainedTokenizerBase, say: Say) -> list[PreferencePair]:
    preferences = load_preferences(data.path, tokenizer, max_tokens=data.max_tokens, split=data.split)
    _say_skipped("pairs", preferences.skipped, data, say)
    return preferences.pairs


def _load_labelled(data: DpoDataConfig, tokenizer: PreTrainedTokenizerBase, say: Say) -> list[KtoExample]:
    examples: list[KtoExample] = []
    skipped: Counter[str] = Counter()
    for place, record in read_records(data.path, data.split):
        try:
            example = _labelled(record, tokenizer)
        except ValueError as error:
            raise ConfigError(f"{place}: {error}") from None
        if example is None:
            skipped[EMPTY] += 1
        elif len(example.prompt_ids) + len(example.completion_ids) > data.max_tokens:
            skipped[TOO_LONG] += 1
        else:
            examples.append(example)
    _say_skipped("completions", skipped, data, say)
    if not examples:
        raise ConfigError(
            f"data.path is '{data.path}': no completion left (data.max_tokens is {data.max_tokens}); give more, or "
            "raise data.max_tokens"
        )
    return examples


def _labelled(record: Record, tokenizer: PreTrainedTokenizerBase) -> KtoExample | None:
    label = record.get("label")
    if not isinstance(label, bool):
        raise ValueError(f'"label" is {label!r:.60}; it must be true for a good completion, false for a bad one')
    example = read_chat_example(record, tokenizer, "last")
    if example is None:
        return None
    prompt_ids = example.prompt_ids
    return KtoExample(prompt_ids, example.token_ids[len(prompt_ids) :], label)


def _say_skipped(what: str, skipped: dict[str, int], data: DpoDataConfig, say: Say) -> None:
    for reason, count in sorted(skipped.items()):
        say(f"{count} {what} left out: {reason} (the limit is {data.max_tokens} tokens)")
