"""Reads any form of item as prompt and completion in plain text, for scorers that read text themselves."""

from typing import assert_never

from rlhf.rollout import fault_of_ids
from services.reward.scorers.scorer import (
    ChatMessage,
    Conversation,
    Decoder,
    ErrorCode,
    Item,
    RawPair,
    ScoreError,
    TextPair,
    TokenPair,
    TokenSequence,
)


class ItemReader:
    """Turns items into text pairs."""

    def __init__(self, decoder: Decoder | None) -> None:
        """Args: decoder: turns token ids into text; None: items of tokens are refused."""
        self._decoder = decoder

    @property
    def tokenizer_digest(self) -> str:
        """Digest of the decoder's tokenizer; empty without one."""
        return "" if self._decoder is None else self._decoder.digest

    def read(self, item: Item) -> TextPair | ScoreError:
        """Returns the item as text.

        A conversation's prompt is what the user said, or all messages with their roles if there are several. Special
        tokens are left out, of raw text only if there is a decoder; a chat template's own words stay in the prompt.
        """
        match item:
            case TextPair():
                return item
            case RawPair():
                if self._decoder is None:
                    return TextPair(item.prompt, item.completion)
                plain = self._decoder.without_special_tokens
                return TextPair(plain(item.prompt), plain(item.completion))
            case Conversation():
                return _read_conversation(item.messages)
            case TokenPair():
                return self._decode(item)
            case TokenSequence():
                return ScoreError(
                    ErrorCode.INVALID_ITEM,
                    "the item is a sequence of ids, in which this scorer cannot tell the completion from the prompt; "
                    "send tokens with prompt_ids and completion_ids, or text",
                )
        assert_never(item)

    def _decode(self, item: TokenPair) -> TextPair | ScoreError:
        if self._decoder is None:
            return ScoreError(
                ErrorCode.INVALID_ITEM,
                "the item has tokens, but this scorer reads text and has no tokenizer; send text, or start the service "
                "with --scorer.tokenizer DIR",
            )
        for field in ("prompt_ids", "completion_ids"):
            fault = fault_of_ids(f"tokens.{field}", getattr(item, field), self._decoder.vocab_size)
            if fault is not None:
                return ScoreError(ErrorCode.INVALID_ITEM, fault)
        return TextPair(self._decoder.decode(item.prompt_ids), self._decoder.decode(item.completion_ids))


def _read_conversation(messages: tuple[ChatMessage, ...]) -> TextPair:
    *before, answer = messages
    alone = len(before) == 1 and before[0].role == "user"
    prompt = before[0].content if alone else "\n\n".join(f"{each.role}: {each.content}" for each in before)
    return TextPair(prompt, answer.content)
