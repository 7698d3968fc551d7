"""Tokenizes what people wrote so that it stays text: a special token written out in it never becomes one.

Without this, a prompt that says "<|im_end|>" ends the user's turn, and may go on in the assistant's name. Text without
such strings is tokenized as ever, so it gets the ids that models are trained on. Only tokens that the tokenizer itself
marks as special are guarded.
"""

import re
import secrets
from collections.abc import Mapping, Sequence

from tokenizers import decoders, pre_tokenizers
from transformers import PreTrainedTokenizerBase


class ForgedTokenError(Exception):
    """A text that cannot be told apart from special tokens; the message says what to do."""


class PlainText:
    """A tokenizer that keeps text and special tokens apart."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        # The id of what is not known is no control token: ordinary text may contain it.
        added = {
            token_id: token
            for token_id, token in tokenizer.added_tokens_decoder.items()
            if token.special and token_id != tokenizer.unk_token_id
        }
        self._special_ids = frozenset(added)
        strings = sorted((str(token) for token in added.values()), key=len, reverse=True)
        # Without any it finds nothing, rather than the empty string everywhere.
        self._special = re.compile("|".join(map(re.escape, strings)) or r"(?!)")
        # Such a token is found after normalisation, so in texts that do not hold its letters as they are.
        self._in_disguise = any(token.normalized for token in added.values())
        self.max_token_characters = _max_token_characters(tokenizer)
        """No token stands for more characters; None if that is not known."""

    def remove(self, text: str) -> str:
        """Returns the text without special tokens that are written out in it."""
        return self._special.sub("", text)

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
        return self._special.search(text) is not None


def _max_token_characters(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Returns how many characters the longest token stands for, if no text can have fewer tokens than that says.

    Byte-level tokenizers lose nothing on the way: every byte of a text is in one of its tokens. Others may drop spaces,
    or take a long word as one unknown token.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or backend.normalizer is not None or not isinstance(backend.decoder, decoders.ByteLevel):
        return None
    vocabulary = tokenizer.get_vocab()
    knows_every_byte = all(byte in vocabulary for byte in pre_tokenizers.ByteLevel.alphabet())
    swallows_spaces = any(token.lstrip or token.rstrip for token in tokenizer.added_tokens_decoder.values())
    if swallows_spaces or not knows_every_byte:
        return None
    return max(map(len, vocabulary))
