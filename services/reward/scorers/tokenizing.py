"""Between text and token ids, with the tokenizer and chat template of a checkpoint."""

import re
from collections.abc import Sequence
from pathlib import Path

from blake3 import blake3
from jinja2 import TemplateError

from rlhf.models.loading import load_tokenizer, tokenizer_digest
from services.reward.scorers.scorer import ChatMessage, Conversation, ErrorCode, RawPair, ScoreError, TextPair
from services.reward.scorers.text import ForgedTokenError, PlainText

_ROLE = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")
"""Letters of no special token: templates write the role between special tokens, or as a part of one."""


class PairTokenizer:
    """The tokenizer of a directory, as scorers use it. Not for two threads at a time."""

    def __init__(self, path: str | Path, field: str = "scorer.path") -> None:
        """Raises: ConfigError naming `field` if the directory has no tokenizer."""
        self._tokenizer = load_tokenizer(path, field)
        self._plain = PlainText(self._tokenizer)
        self.digest = tokenizer_digest(self._tokenizer)
        self.vocab_size = len(self._tokenizer)
        template = self._tokenizer.chat_template or ""
        self.template_digest = blake3(str(template).encode()).hexdigest()

    def decode(self, ids: list[int]) -> str:
        """Returns the text, special tokens left out."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def without_special_tokens(self, text: str) -> str:
        """Returns a text without the special tokens that are written out in it."""
        return self._plain.remove(text)

    def encode(self, item: TextPair | Conversation | RawPair, max_tokens: int) -> list[int] | ScoreError:
        """Returns the ids of prompt and completion, or what is wrong with them; there may be more than max_tokens.

        A text pair is a conversation of a user's message and its answer. Messages go through the chat template, up to
        where the answer begins; the answer gets the end-of-sequence id: it is finished, and reward models are trained
        on completions that have it. Without a template the prompt of a pair is tokenized as it stands. What messages
        say is never a special token, whatever it looks like: nobody can end a turn, or begin one, from inside it. A raw
        pair is one text, tokenized with the special tokens that are written out in it.

        Args: max_tokens: what the model takes; a text that is certain to have more is not tokenized. 0: any number.
        """
        try:
            if isinstance(item, RawPair):
                return self._encode_raw(item, max_tokens)
            if isinstance(item, TextPair):
                if not self._tokenizer.chat_template:
                    return self._encode_without_template(item, max_tokens)
                prompt = (ChatMessage("user", item.prompt),)
                return self._encode_answer(prompt, item.completion, max_tokens)
            return self._encode_conversation(item, max_tokens)
        except ForgedTokenError as error:
            return _invalid(str(error))

    def _encode_raw(self, item: RawPair, max_tokens: int) -> list[int] | ScoreError:
        text = item.prompt + item.completion
        fault = self._fault_of_length([text], max_tokens)
        if fault is not None:
            return fault
        ids: list[int] = self._tokenizer(text, add_special_tokens=item.add_special_tokens)["input_ids"]
        return ids or _invalid("raw.completion has no token in this model's tokenizer; send some text")

    def _encode_without_template(self, item: TextPair, max_tokens: int) -> list[int] | ScoreError:
        fault = self._fault_of_length([item.prompt, item.completion], max_tokens)
        if fault is not None:
            return fault
        prompt_ids = self._plain.encode(item.prompt, add_special_tokens=True)
        return [*prompt_ids, *self._encode_completion(item.completion)]

    def _encode_conversation(self, item: Conversation, max_tokens: int) -> list[int] | ScoreError:
        *prompt, answer = item.messages
        if not prompt or answer.role != "assistant":
            return _invalid("the last of conversation.messages must be the assistant's, and answer at least one other")
        for index, message in enumerate(item.messages):
            if not _ROLE.fullmatch(message.role):
                return _invalid(
                    f"conversation.messages[{index}].role is {message.role[:64]!r}; a role is a word, such as system, "
                    "user or assistant"
                )
        if not self._tokenizer.chat_template:
            return _invalid(
                "the item is a conversation, but the served model has no chat template; send text with prompt and "
                "completion, or raw text with the roles written out"
            )
        return self._encode_answer(prompt, answer.content, max_tokens)

    def _encode_answer(self, prompt: Sequence[ChatMessage], completion: str, max_tokens: int) -> list[int] | ScoreError:
        messages = [{"role": message.role, "content": message.content} for message in prompt]
        try:
            rendered, hidden = self._plain.render(messages)
        except TemplateError as error:
            return _invalid(f"the served model's chat template refuses the messages: {error}; see which roles it takes")
        said = [hidden[place] for place in rendered[1::2]]
        fault = self._fault_of_length([*rendered[::2], *said, completion], max_tokens)
        if fault is not None:
            return fault
        return [*self._plain.encode_rendered(rendered, hidden), *self._encode_completion(completion)]

    def _encode_completion(self, completion: str) -> list[int]:
        ids = self._plain.encode(completion)
        eos = self._tokenizer.eos_token_id
        return ids if eos is None else [*ids, eos]

    def _fault_of_length(self, texts: Sequence[str], max_tokens: int) -> ScoreError | None:
        """Refuses texts that are sure to be too long, before a second is spent on tokenizing them."""
        num_tokens = self._plain.least_num_tokens(texts) if max_tokens else 0
        if num_tokens <= max_tokens:
            return None
        return ScoreError(
            ErrorCode.TOO_LONG,
            f"prompt and completion have {sum(map(len, texts))} characters, so at least {num_tokens} tokens, the model "
            f"takes at most {max_tokens}; send a shorter pair (nothing is cut silently)",
        )


def _invalid(message: str) -> ScoreError:
    return ScoreError(ErrorCode.INVALID_ITEM, message)
