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
                return TextPair(self._plain(item.prompt), self._plain(item.completion))
            case Conversation():
                return _read_conversation(item.messages)
            case TokenPair():
                decoder = self._decoder_of(item)
                if isinstance(decoder, ScoreError):
                    return decoder
                return TextPair(decoder.decode(item.prompt_ids), decoder.decode(item.completion_ids))
            case TokenSequence():
                return _NO_SEQUENCE
        assert_never(item)

    def read_completion(self, item: Item) -> str | ScoreError:
        """Returns the completion alone, as `read` does."""
        match item:
            case TextPair():
                return item.completion
            case RawPair():
                return self._plain(item.completion)
            case Conversation():
                if not item.messages or item.messages[-1].role != "assistant":
                    return ScoreError(
                        ErrorCode.INVALID_ITEM,
                        "the last of conversation.messages must be the assistant's, which is scored",
                    )
                return item.messages[-1].content
            case TokenPair():
                decoder = self._decoder_of(item)
                return decoder if isinstance(decoder, ScoreError) else decoder.decode(item.completion_ids)
            case TokenSequence():
                return _NO_SEQUENCE
        assert_never(item)

    def _plain(self, text: str) -> str:
        return text if self._decoder is None else self._decoder.without_special_tokens(text)

    def _decoder_of(self, item: TokenPair) -> Decoder | ScoreError:
        """Returns the decoder, or why it cannot read the item's ids."""
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
        return self._decoder


_NO_SEQUENCE = ScoreError(
    ErrorCode.INVALID_ITEM,
    "the item is a sequence of ids, in which this scorer cannot tell the completion from the prompt; send tokens with "
    "prompt_ids and completion_ids, or text",
)


def _read_conversation(messages: tuple[ChatMessage, ...]) -> TextPair:
    *before, answer = messages
    alone = len(before) == 1 and before[0].role == "user"
    prompt = before[0].content if alone else "\n\n".join(f"{each.role}: {each.content}" for each in before)
    return TextPair(prompt, answer.content)
