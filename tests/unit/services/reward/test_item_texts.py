"""Every form of item as the text that a judge or a scorer of one's own reads."""

from pathlib import Path

from services.reward.scorers.item_texts import ItemReader
from services.reward.scorers.scorer import (
    ChatMessage,
    Conversation,
    ErrorCode,
    RawPair,
    ScoreError,
    TextPair,
    TokenPair,
    TokenSequence,
)
from services.reward.scorers.text import PairTokenizer
from tests.support.tiny_model import ASSISTANT_ID, EOS_ID, USER_ID, make_tiny_tokenizer

RAW = RawPair("<|user|>hi<|end|><|assistant|>", "yes<|end|>")


def test_with_a_tokenizer_every_form_of_the_same_item_is_the_same_text(tiny_reward_path: Path):
    reader = ItemReader(PairTokenizer(tiny_reward_path))
    hi, yes = (make_tiny_tokenizer().encode(text) for text in ("hi", "yes"))
    forms = [
        TextPair("hi", "yes"),
        Conversation((ChatMessage("user", "hi"), ChatMessage("assistant", "yes"))),
        RAW,
        TokenPair([USER_ID, *hi, EOS_ID, ASSISTANT_ID], [*yes, EOS_ID]),
    ]
    assert [reader.read(form) for form in forms] == [TextPair("hi", "yes")] * 4


def test_without_a_tokenizer_raw_text_is_read_as_it_stands():
    assert ItemReader(None).read(RAW) == TextPair(RAW.prompt, RAW.completion)


def test_of_several_messages_the_prompt_names_the_roles():
    messages = [("system", "s"), ("user", "hi"), ("assistant", "yes")]
    item = Conversation(tuple(ChatMessage(*message) for message in messages))
    assert ItemReader(None).read(item) == TextPair("system: s\n\nuser: hi", "yes")


def test_ids_that_cannot_be_read_are_refused_with_the_remedy():
    for item, remedy in [(TokenPair([1], [2]), "--scorer.tokenizer DIR"), (TokenSequence([1, 2]), "or text")]:
        fault = ItemReader(None).read(item)
        assert isinstance(fault, ScoreError)
        assert fault.code is ErrorCode.INVALID_ITEM
        assert fault.message.endswith(remedy)
