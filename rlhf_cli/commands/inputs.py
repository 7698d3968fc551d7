"""What commands read: texts from flags, or JSONL from a file or stdin; and the tokenizer that makes ids of them."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf.errors import ConfigError
from rlhf_cli.errors import CommandError, UsageError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Record:
    """One object of a JSONL file."""

    place: str
    """Where it stands, for errors: "file:line"."""
    value: Mapping[str, Any]

    def text(self, key: str) -> str:
        """Returns a text that is not empty. Raises: ConfigError naming the place."""
        value = self.value.get(key)
        if not isinstance(value, str) or not value:
            raise ConfigError(f"{self.place}: {key} is {value!r:.60}; it must be text, not empty")
        return value


def read_records(path: Path) -> list[Record]:
    """Returns the objects of a JSONL file ("-" is stdin); blank lines are passed over.

    Raises: ConfigError naming the place of what is no object, or saying that there is nothing.
    """
    from rlhf.data.records import parse_json_lines, read_json_lines

    rows = parse_json_lines(sys.stdin, "-") if str(path) == "-" else read_json_lines(path, "--file")
    records = [Record(place, value) for place, value in rows]
    if not records:
        raise ConfigError(f"{path} holds nothing")
    return records


def pair_records(prompt: str | None, completion: str | None, file: Path | None) -> list[Record]:
    """Returns the (prompt, completion) records that a command was given, by flags or by file.

    Raises: UsageError unless it is one or the other; ConfigError.
    """
    if file is not None and prompt is None and completion is None:
        return read_records(file)
    if file is None and prompt is not None and completion is not None:
        return [Record("--prompt and --completion", {"prompt": prompt, "completion": completion})]
    raise UsageError("give --prompt and --completion, or --file with a JSONL file that has both on each line")


def load_text_tokenizer(option: Path | None, model_name: str) -> "PreTrainedTokenizerBase":
    """Returns the tokenizer that was named, or that of the model a service reports if it lies on this machine.

    Raises: CommandError if neither is there; ConfigError.
    """
    if option is None and not Path(model_name).is_dir():
        raise CommandError(
            f"the service serves '{model_name}', which is no directory on this machine; "
            "name a copy of its tokenizer with --tokenizer DIR"
        )
    from rlhf.models.loading import load_tokenizer

    return load_tokenizer(model_name if option is None else option)


def encode_prompts(records: Sequence[Record], tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
    """Returns each record's prompt as token ids, after the chat template. Raises: ConfigError naming the place."""
    from rlhf.data.prompts import read_prompt

    encoded = []
    for record in records:
        prompt = {key: record.value[key] for key in ("prompt", "messages") if key in record.value}
        try:
            encoded.append(read_prompt(prompt, tokenizer).prompt_ids)
        except ValueError as error:
            raise ConfigError(f"{record.place}: {error}") from None
    return encoded
