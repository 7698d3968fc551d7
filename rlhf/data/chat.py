"""Conversations for supervised training, and which of their tokens are the assistant's, according to the chat template.

If the template marks the assistant's tokens with {% generation %}, the marks are used. Any other template is rendered
up to each assistant turn, with the generation prompt and with the answer: the difference is the text that the model has
to generate, including its end-of-turn token. Each such piece is tokenized on its own, as in sampling.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rlhf.data.prompts import Message, checked_messages, encode_completion, read_prompt
from rlhf.data.records import Record, no_row_left, read_records, require_ids, require_prompt_ids
from rlhf.errors import ConfigError

TrainOn = Literal["all", "last"]
"""Which assistant turns of a conversation are trained."""

EMPTY = "an empty completion"
TOO_LONG = "too long"

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True, slots=True)
class ChatExample:
    """A whole conversation as token ids."""

    token_ids: tuple[int, ...]
    trained: tuple[bool, ...]
    """For each id, whether it is trained; False for the first, which nothing predicts."""

    @property
    def num_trained(self) -> int:
        """Number of trained tokens, at least 1."""
        return sum(self.trained)

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The ids before the first trained one."""
        return self.token_ids[: self.trained.index(True)]


@dataclass(frozen=True, slots=True)
class ChatExamples:
    """The usable examples of a source, in its order."""

    examples: list[ChatExample]
    skipped: dict[str, int] = field(default_factory=dict)
    """Number of examples that were left out, by reason."""


def load_chat_examples(
    source: str | Path,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_tokens: int,
    split: str = "train",
    train_on: TrainOn = "all",
    field: str = "data.path",
) -> ChatExamples:
    """Returns the examples of a JSONL or Parquet file, or of a data set's split.

    Each row has "messages"; or "prompt" (text or messages) and "completion" (text or messages); or "prompt_ids" and
    "completion_ids" (token ids). Without a chat template a completion is its text and the end-of-sequence token.

    Args:
        source, split: as in read_records.
        tokenizer: of the model to be trained.
        max_tokens: longer examples are left out and counted; nothing is cut.
        train_on: every assistant turn, or only the last.
        field: the dotted path of the setting that named the source, for errors.
    Raises: ConfigError naming the place of a malformed row, or if no example is usable.
    """
    examples: list[ChatExample] = []
    skipped: Counter[str] = Counter()
    for place, record in read_records(source, split, field=field):
        try:
            example = read_chat_example(record, tokenizer, train_on)
        except ValueError as error:
            raise ConfigError(f"{place}: {error}") from None
        if example is None:
            skipped[EMPTY] += 1
        elif len(example.token_ids) > max_tokens:
            skipped[TOO_LONG] += 1
        else:
            examples.append(example)
    if not examples:
        raise no_row_left(source, "example", skipped, max_tokens, more="examples", field=field)
    return ChatExamples(examples, dict(skipped))


def read_chat_example(
    record: Record, tokenizer: PreTrainedTokenizerBase, train_on: TrainOn = "all"
) -> ChatExample | None:
    """Returns the example of a row; None if the assistant says nothing in it. Raises: ValueError if it is malformed."""
    present = {key: value for key, value in record.items() if value is not None}
    if "completion_ids" in present:
        return _from_ids(present, len(tokenizer))
    if "completion" in present:
        if isinstance(present["completion"], str) and not present["completion"]:
            return None
        if tokenizer.chat_template is None:
            return _plain(present, tokenizer)
        return encode_conversation(_conversation(present), tokenizer, "last")
    if "messages" not in present:
        names = ", ".join(f'"{name}"' for name in present) or "(none)"
        raise ValueError(
            f'there are the columns {names}; an example needs "messages", or "prompt" and "completion", or '
            '"prompt_ids" and "completion_ids"'
        )
    return encode_conversation(checked_messages("messages", present["messages"]), tokenizer, train_on)


def encode_conversation(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, train_on: TrainOn
) -> ChatExample | None:
    """Returns a conversation as an example; None if its trained assistant turns are all empty.

    Raises: ValueError if there is no assistant turn, no chat template, or one whose turns cannot be told apart.
    """
    if tokenizer.chat_template is None:
        raise ValueError(
            '"messages" need a chat template, and the tokenizer has none; give "prompt" and "completion", or a model '
            "with a chat template"
        )
    turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        raise ValueError('"messages" has no message of the assistant; there is nothing to learn from it')
    turns = [index for index in (turns if train_on == "all" else turns[-1:]) if messages[index]["content"]]
    if not turns:
        return None
    try:
        if _GENERATION.search(str(tokenizer.chat_template)):
            return _by_template_marks(messages, tokenizer, train_on)
        return _by_prefixes(messages, turns, tokenizer)
    except TemplateError as error:
        raise ValueError(f"the chat template refuses the conversation: {error}; see which roles it allows") from None


def _by_prefixes(
    messages: Sequence[Message], turns: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> ChatExample | None:
    whole = _render(messages, tokenizer)
    ids: list[int] = []
    trained: list[bool] = []
    done = 0
    for index in turns:
        start = len(_prefix_of(whole, messages[:index], tokenizer, index, add_generation_prompt=True))
        is_last = index == len(messages) - 1
        stop = len(whole) if is_last else len(_prefix_of(whole, messages[: index + 1], tokenizer, index))
        before, said = (encode_text(whole[part], tokenizer) for part in (slice(done, start), slice(start, stop)))
        num_said = _through_end_of_turn(said, tokenizer)
        ids += before + said
        trained += [False] * len(before) + [True] * num_said + [False] * (len(said) - num_said)
        done = stop
    # What follows the last trained turn is not trained, and no trained token depends on it.
    return trimmed(ids, trained)


def _prefix_of(
    whole: str,
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    turn: int,
    *,
    add_generation_prompt: bool = False,
) -> str:
    """Returns a rendering of the first messages. Raises: ValueError if the whole rendering does not begin with it."""
    if not messages:
        raise ValueError(
            "the first of \"messages\" is the assistant's, which answers nothing; begin with the user's, or train the "
            "last turn alone (data.train_on = 'last')"
        )
    prefix = _render(messages, tokenizer, add_generation_prompt=add_generation_prompt)
    if not whole.startswith(prefix):
        raise ValueError(
            f'the chat template writes the conversation before and after "messages"[{turn}] differently than within '
            "the whole, so what the assistant said there cannot be told apart: train the last turn alone "
            "(data.train_on = 'last'), or give the template {% generation %} marks"
        )
    return prefix


def _through_end_of_turn(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns how many of a turn's ids the model generates: those up to its last special token.

    Sampling stops at the end-of-turn token; the template may write more after it, such as a line break.
    """
    special = set(tokenizer.all_special_ids)
    return next((count for count in range(len(ids), 0, -1) if ids[count - 1] in special), len(ids))


def _by_template_marks(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, train_on: TrainOn
) -> ChatExample | None:
    encoded = tokenizer.apply_chat_template(
        list(messages), tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    trained = [bool(each) for each in encoded["assistant_masks"]]
    if not any(trained):
        return None
    if train_on == "last":
        stop = len(trained) - trained[::-1].index(True)
        start = stop - next((n for n, each in enumerate(trained[:stop][::-1]) if not each), stop)
        trained = [start <= index < stop for index in range(len(trained))]
    return trimmed(list(encoded["input_ids"]), trained)


def _render(
    messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase, *, add_generation_prompt: bool = False
) -> str:
    text: str = tokenizer.apply_chat_template(
        list(messages), tokenize=False, add_generation_prompt=add_generation_prompt
    )
    return text


def trimmed(ids: list[int], trained: list[bool]) -> ChatExample | None:
    """Returns the example up to its last trained id; None if nothing is trained."""
    trained = [False, *trained[1:]]
    if not any(trained):
        return None
    stop = len(trained) - trained[::-1].index(True)
    return ChatExample(tuple(ids[:stop]), tuple(trained[:stop]))


def encode_text(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Returns the ids of a text without special tokens around it."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _plain(record: Record, tokenizer: PreTrainedTokenizerBase) -> ChatExample | None:
    completion = record["completion"]
    if not isinstance(completion, str):
        raise ValueError(f'"completion" is {completion!r:.60}; without a chat template it must be text')
    prompt_ids = read_prompt(
        {key: record[key] for key in ("prompt", "messages") if key in record}, tokenizer
    ).prompt_ids
    ids = encode_completion(completion, tokenizer)
    return trimmed([*prompt_ids, *ids], [False] * len(prompt_ids) + [True] * len(ids))


def _from_ids(record: Record, vocab_size: int) -> ChatExample | None:
    prompt_ids = require_prompt_ids(record, vocab_size)
    completion_ids = require_ids("completion_ids", record.get("completion_ids"), vocab_size)
    return trimmed(prompt_ids + completion_ids, [False] * len(prompt_ids) + [True] * len(completion_ids))


def _conversation(record: Record) -> list[Message]:
    """Returns the messages of a row with "completion": the prompt's, then the completion as the assistant's."""
    if ("prompt" in record) == ("messages" in record):
        raise ValueError('"completion" needs either "prompt" or "messages" that it answers')
    prompt, completion = record.get("prompt", record.get("messages")), record["completion"]
    opening = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else checked_messages("prompt", prompt)
    if isinstance(prompt, str) and not prompt.strip():
        raise ValueError(f'"prompt" is {prompt!r}; it must be a text that is not empty')
    if isinstance(completion, str):
        return [*opening, {"role": "assistant", "content": completion}]
    return [*opening, *checked_messages("completion", completion)]
