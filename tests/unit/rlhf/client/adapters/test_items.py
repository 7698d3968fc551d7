from types import SimpleNamespace

import pytest

from rlhf.client import RewardError, ScoreItem
from rlhf.client.adapters.scoring import make_item

USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}


def test_two_texts_are_a_text_item_or_a_raw_one():
    assert make_item("Hi", "Hello") == ScoreItem.text("Hi", "Hello")
    assert make_item("<|user|>Hi", "Hello<|end|>", raw=True) == ScoreItem.raw("<|user|>Hi", "Hello<|end|>")


@pytest.mark.parametrize(
    ("prompt", "completion"),
    [
        ([USER], [ASSISTANT]),
        ([USER], "Hello"),
        ("Hi", [ASSISTANT]),
        ([], [USER, ASSISTANT]),
        ([SimpleNamespace(**USER)], [SimpleNamespace(**ASSISTANT, tool_calls=None)]),
        ([{"role": "user", "content": [{"type": "text", "text": "H"}, {"type": "text", "text": "i"}]}], [ASSISTANT]),
    ],
)
def test_messages_are_a_conversation(prompt: object, completion: object):
    assert make_item(prompt, completion) == ScoreItem.conversation([USER, ASSISTANT])


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"role": "user", "content": [{"type": "image"}]}, "has a part of type 'image'; only text is scored"),
        ({"role": "assistant", "content": "", "tool_calls": [{}]}, "of the assistant calls tools"),
        ({"content": "Hi"}, "has the role None; give each a role"),
    ],
)
def test_a_message_that_cannot_be_sent_whole_is_an_error_of_its_item(message: dict[str, object], reason: str):
    item = make_item([message], [ASSISTANT])
    assert isinstance(item, RewardError)
    assert item.code == "invalid_item"
    assert reason in item.message
