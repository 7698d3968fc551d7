"""Tokenizes what people wrote so that it stays text: a special token written out in it never becomes one.

Without this, a prompt that says "<|im_end|>" ends the user's turn, and may go on in the assistant's name. Text without
such strings is tokenized as ever, so it gets the ids that models are trained on. Only tokens that the tokenizer itself
marks as special are guarded.
"""

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Self

from blake3 import blake3
from jinja2 import TemplateError
from tokenizers import decoders
from transformers import PreTrainedTokenizerBase

from rlhf.models.loading import load_tokenizer, tokenizer_digest
from services.reward.scorers.scorer import ChatMessage, Conversation, ErrorCode, RawPair, ScoreError, TextPair


class ForgedTokenError(Exception):
    """A text that cannot be told apart from special tokens; the message says what to do."""


class PlainText:
    """A tokenizer that keeps text and special tokens apart."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        added = {token_id: token for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
        # The id of what is not known may come of ordinary text, unless some tokenizer has it do another's work as well.
        unknown = {tokenizer.unk_token_id} - {tokenizer.eos_token_id, tokenizer.bos_token_id}
        self._special_ids = frozenset(added) - unknown
        self._special = sorted((str(token) for token in added.values()), key=len, reverse=True)
        # Such a token is found after normalisation, so in texts that do not hold its letters as they are.
        self._in_disguise = any(token.normalized for token in added.values())
        self._bytes = _ByteVocabulary.of(tokenizer)

    def remove(self, text: str) -> str:
        """Returns the text without special tokens that are written out in it."""
        return re.sub("|".join(map(re.escape, self._special)), "", text)

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Returns the ids of a text, none of them special but those that the tokenizer puts around every text.

        Raises: ForgedTokenError if this tokenizer reads a special token even in plain text.
        """
        if not self._holds_special(text):
            ids: list[int] = self._tokenizer(text, add_special_tokens=add_special_tokens)["input_ids"]
            return ids
        ids = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        forged = self._special_ids.intersection(ids)
        if forged:
            token = self._tokenizer.convert_ids_to_tokens(min(forged))
            raise ForgedTokenError(
                f"the text has '{token}', a special token that this tokenizer cannot take as plain text; leave it out, "
                "or send token ids"
            )
        if add_special_tokens:
            ids = self._tokenizer(text, split_special_tokens=True)["input_ids"]
        return ids

    def least_num_tokens(self, texts: Sequence[str]) -> int:
        """Returns how many tokens texts are sure to have at least, without tokenizing; 0 if that is not known."""
        return 0 if self._bytes is None else -(-self._bytes.num_read(texts) // self._bytes.longest)

    def render(self, messages: Sequence[Mapping[str, str]]) -> tuple[list[str], dict[str, str]]:
        """Returns the messages as the chat template writes them, up to where the answer begins, in pieces.

        Pieces of even index are text with the template's special tokens. Those of odd index stand for what a message
        says that holds special tokens written out; the second value has that text for each.

        Raises: jinja2.TemplateError if the template refuses the messages.
        """
        mark = f"\ue000{secrets.token_hex(8)}:"  # not to be guessed, so in no message
        hidden: dict[str, str] = {}
        shown = []
        for index, message in enumerate(messages):
            content = message["content"]
            if self._holds_special(content):
                place = f"{mark}{index}\ue001"
                hidden[place] = content
                content = place
            shown.append({**message, "content": content})
        rendered = self._tokenizer.apply_chat_template(shown, tokenize=False, add_generation_prompt=True)
        if not hidden:
            return [rendered], hidden
        pieces = re.split(f"({mark}[0-9]+\ue001)", rendered)
        if any(mark in piece for piece in pieces[::2]):
            raise ForgedTokenError(
                "a message has special tokens written out, and the chat template takes it apart; leave them out"
            )
        return pieces, hidden

    def encode_rendered(self, pieces: Sequence[str], hidden: Mapping[str, str]) -> list[int]:
        """Returns the ids of what `render` returned. Raises: ForgedTokenError as `encode`."""
        ids: list[int] = []
        for index, piece in enumerate(pieces):
            if index % 2:
                ids += self.encode(hidden[piece])
            elif piece:
                ids += self._tokenizer(piece, add_special_tokens=False)["input_ids"]
        return ids

    def _holds_special(self, text: str) -> bool:
        if self._in_disguise:
            ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
            return not self._special_ids.isdisjoint(ids)
        # Several times as fast as one regular expression, on every text that is tokenized.
        return any(token in text for token in self._special)


@dataclass(frozen=True, slots=True)
class _ByteVocabulary:
    """What bounds the number of tokens of a byte-level tokenizer: every byte that it knows ends up in one of them.

    Other tokenizers may drop spaces, or take a long word as one unknown token.
    """

    longest: int
    """Most bytes of one token."""
    unknown: bytes
    """Bytes that are no token, and are left out of a text."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Self | None:
        """Returns that of a tokenizer; None if it is not byte-level, or changes text before it reads it."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None or backend.normalizer is not None or not isinstance(backend.decoder, decoders.ByteLevel):
            return None
        added = tokenizer.added_tokens_decoder.values()
        if any(token.lstrip or token.rstrip for token in added):
            return None
        vocabulary = tokenizer.get_vocab()
        # A character of a token stands for one byte, and in an added token for itself.
        longest = max(*map(len, vocabulary), *(len(str(token).encode()) for token in added))
        return cls(longest, bytes(byte for character, byte in _BYTES.items() if character not in vocabulary))

    def num_read(self, texts: Sequence[str]) -> int:
        """Returns the number of the texts' bytes that end up in a token."""
        return sum(len(text.encode("utf-8", "surrogatepass").translate(None, self.unknown)) for text in texts)


def _byte_characters() -> dict[str, int]:
    """Returns the byte for which each character stands in a byte-level vocabulary.

    Bytes that are printable in Latin-1 stand for themselves, the others are numbered from U+0100 on.
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


_BYTES: Mapping[str, int] = MappingProxyType(_byte_characters())


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
