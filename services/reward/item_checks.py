"""What is checked of an item before a scorer sees it: its form, the sizes of its texts, and that they are Unicode."""

from collections.abc import Sequence

from services.reward.scorers.scorer import Conversation, ErrorCode, Item, RawPair, ScoreError, TextPair

NamedText = tuple[str, str]


def fault_of_item(item: Item | None, max_text_characters: int) -> ScoreError | None:
    """Says what is wrong with an item whatever the scorer; None if nothing is. Token ids are the scorer's to check."""
    match item:
        case None:
            return _invalid("the item has no input; set one of text, tokens, conversation, raw and sequence")
        case TextPair():
            texts = [("text.prompt", item.prompt), ("text.completion", item.completion)]
            return _fault_of_texts(texts, texts, max_text_characters)
        case RawPair():
            texts = [("raw.prompt", item.prompt), ("raw.completion", item.completion)]
            return _fault_of_texts(texts, texts[1:], max_text_characters)
        case Conversation():
            return _fault_of_messages(item, max_text_characters)
        case _:
            return None


def _fault_of_messages(conversation: Conversation, max_text_characters: int) -> ScoreError | None:
    messages = conversation.messages
    if len(messages) < 2:
        return _invalid(f"conversation.messages has {len(messages)} entries; send what was asked and the answer to it")
    if messages[-1].role != "assistant":
        return _invalid(
            f"the role of the last of conversation.messages is {messages[-1].role[:64]!r}; the last message is what is "
            "scored, and its role 'assistant'"
        )
    texts: list[NamedText] = []
    for index, message in enumerate(messages):
        texts += [(f"conversation.messages[{index}].role", message.role)]
        texts += [(f"conversation.messages[{index}].content", message.content)]
    # A system's or user's message may be empty, as in the conversations that models are trained on.
    return _fault_of_texts(texts, [*texts[::2], texts[-1]], max_text_characters)


def _fault_of_texts(
    texts: Sequence[NamedText], needed: Sequence[NamedText], max_text_characters: int
) -> ScoreError | None:
    for field, text in needed:
        if not text:
            return _invalid(f"{field} is empty; send at least one character")
    num_characters = sum(len(text) for _, text in texts)
    if num_characters > max_text_characters:
        return ScoreError(
            ErrorCode.TOO_LONG,
            f"{_and(texts)} have {num_characters} characters, the limit is {max_text_characters} "
            "(limits.max_text_characters); send less",
        )
    for field, text in texts:
        fault = _fault_of_unicode(field, text)
        if fault is not None:
            return fault
    return None


def _fault_of_unicode(field: str, text: str) -> ScoreError | None:
    """Refuses half of a surrogate pair, which JSON can spell and no tokenizer can read."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return _invalid(
            f"{field} has U+{ord(text[error.start]):04X} at character {error.start}, half of a surrogate pair, which "
            "is no text; send the whole character"
        )
    return None


def _and(texts: Sequence[NamedText]) -> str:
    return " and ".join(field for field, _ in texts) if len(texts) <= 2 else "conversation.messages"


def _invalid(message: str) -> ScoreError:
    return ScoreError(ErrorCode.INVALID_ITEM, message)
