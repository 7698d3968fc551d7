"""Conversations as training examples: which tokens are the assistant's, written out; and every row that is refused."""

import json
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from rlhf.data.chat import ChatExample, load_chat_examples, read_chat_example
from rlhf.errors import ConfigError
from tests.support.tiny_model import EOS_ID, make_tiny_tokenizer

# Like many real templates: a line break follows the end-of-turn token, and a system message is put in if there is none.
LINES_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}<|user|>be kind<|end|>\n{% endif %}"
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Marks the answer but not its end-of-turn token, which is its author's choice.
MARKED_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}<|assistant|>{% generation %}"
    "{{ message['content'] }}{% endgeneration %}<|end|>{% else %}<|user|>{{ message['content'] }}<|end|>{% endif %}"
    "{% endfor %}"
)
# As templates for thinking models do it: what the assistant said before the last turn is written otherwise.
FORGETFUL_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>"
    "{% if message['role'] == 'user' or loop.last %}{{ message['content'] }}{% else %}...{% endif %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
REFUSING_TEMPLATE = "{{ raise_exception('roles must alternate') }}"

CONVERSATION = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yo"},
    {"role": "user", "content": "1+1"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "ok"},
    {"role": "assistant", "content": "by"},
]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tiny_tokenizer()


def with_template(template: str | None) -> PreTrainedTokenizerFast:
    tokenizer = make_tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def marked(tokenizer: PreTrainedTokenizerFast, example: ChatExample | None) -> str:
    """Returns the example's text with the trained stretches in brackets."""
    assert example is not None
    text, inside = "", False
    for token, trained in zip(example.token_ids, example.trained, strict=True):
        text += "" if trained == inside else "[" if trained else "]"
        text, inside = text + tokenizer.decode([token]), trained
    return text + ("]" if inside else "")


def test_all_three_assistant_turns_are_trained_through_their_end_and_nothing_else(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    example = read_chat_example({"messages": CONVERSATION}, tokenizer)
    assert marked(tokenizer, example) == (
        "<|user|>Hi<|end|><|assistant|>[Yo<|end|>]"
        "<|user|>1+1<|end|><|assistant|>[2<|end|>]"
        "<|user|>ok<|end|><|assistant|>[by<|end|>]"
    )
    assert example is not None
    # One token a byte: <user> H i <end> <assistant>, Y o <end>, ...
    expected = [False] * 5 + [True] * 3 + [False] * 6 + [True] * 2 + [False] * 5 + [True] * 3
    assert list(example.trained) == expected
    assert example.num_trained == 8
    assert len(example.prompt_ids) == 5


def test_the_last_turn_alone_can_be_trained(tokenizer: PreTrainedTokenizerFast) -> None:
    example = read_chat_example({"messages": CONVERSATION[:4]}, tokenizer, "last")
    assert marked(tokenizer, example) == (
        "<|user|>Hi<|end|><|assistant|>Yo<|end|><|user|>1+1<|end|><|assistant|>[2<|end|>]"
    )


def test_what_follows_the_end_of_a_turn_is_not_trained() -> None:
    tokenizer = with_template(LINES_TEMPLATE)
    example = read_chat_example({"messages": CONVERSATION[:4]}, tokenizer)
    assert marked(tokenizer, example) == (
        "<|user|>be kind<|end|>\n<|user|>Hi<|end|>\n<|assistant|>[Yo<|end|>]\n"
        "<|user|>1+1<|end|>\n<|assistant|>[2<|end|>]"
    )


def test_the_marks_of_a_template_are_taken_at_their_word() -> None:
    tokenizer = with_template(MARKED_TEMPLATE)
    assert marked(tokenizer, read_chat_example({"messages": CONVERSATION[:4]}, tokenizer)) == (
        "<|user|>Hi<|end|><|assistant|>[Yo]<|end|><|user|>1+1<|end|><|assistant|>[2]"
    )
    assert marked(tokenizer, read_chat_example({"messages": CONVERSATION[:4]}, tokenizer, "last")) == (
        "<|user|>Hi<|end|><|assistant|>Yo<|end|><|user|>1+1<|end|><|assistant|>[2]"
    )


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "Hi", "completion": "Yo"},
        {"prompt": CONVERSATION[:1], "completion": CONVERSATION[1:2], "id": 7},
        {"messages": CONVERSATION[:1], "completion": "Yo", "prompt": None},
        {"prompt_ids": [2, 43, 76, 1, 3], "completion_ids": [60, 82, EOS_ID]},
    ],
)
def test_a_prompt_with_its_completion_is_the_conversation_of_the_two(
    tokenizer: PreTrainedTokenizerFast, record: dict[str, object]
) -> None:
    example = read_chat_example(record, tokenizer)
    assert example == read_chat_example({"messages": CONVERSATION[:2]}, tokenizer)


def test_without_a_chat_template_prompt_and_completion_are_plain_text() -> None:
    tokenizer = with_template(None)
    assert marked(tokenizer, read_chat_example({"prompt": "Hi", "completion": " Yo"}, tokenizer)) == "Hi[ Yo<|end|>]"


def test_an_assistant_that_says_nothing_is_no_example(tokenizer: PreTrainedTokenizerFast) -> None:
    silent = {"role": "assistant", "content": ""}
    assert read_chat_example({"prompt": "Hi", "completion": ""}, tokenizer) is None
    assert read_chat_example({"messages": [CONVERSATION[0], silent]}, tokenizer) is None
    assert read_chat_example({"prompt_ids": [5], "completion_ids": []}, tokenizer) is None
    example = read_chat_example({"messages": [*CONVERSATION[:2], CONVERSATION[2], silent]}, tokenizer)
    assert marked(tokenizer, example) == "<|user|>Hi<|end|><|assistant|>[Yo<|end|>]"


@pytest.mark.parametrize(
    ("template", "record", "message"),
    [
        (LINES_TEMPLATE, {"question": "?"}, r'there are the columns "question"; an example needs "messages", or'),
        (LINES_TEMPLATE, {"messages": "Hi"}, r"\"messages\" is 'Hi'; it must be text or a list"),
        (LINES_TEMPLATE, {"messages": [{"role": "user"}]}, r'"messages"\[0\] must be an object with the texts'),
        (LINES_TEMPLATE, {"messages": CONVERSATION[:1]}, "has no message of the assistant"),
        (LINES_TEMPLATE, {"messages": CONVERSATION[1:2]}, 'the first of "messages" is the assistant\'s'),
        (LINES_TEMPLATE, {"completion": "Yo"}, 'needs either "prompt" or "messages" that it answers'),
        (LINES_TEMPLATE, {"prompt": " ", "completion": "Yo"}, "\"prompt\" is ' '; it must be a text that is not empty"),
        (LINES_TEMPLATE, {"prompt_ids": [], "completion_ids": [5]}, '"prompt_ids" is empty'),
        (
            LINES_TEMPLATE,
            {"prompt_ids": [5], "completion_ids": [900]},
            '"completion_ids" has 900; the tokenizer\'s ids',
        ),
        (
            None,
            {"messages": CONVERSATION},
            '"messages" need a chat template, and the tokenizer has none; give "prompt"',
        ),
        (FORGETFUL_TEMPLATE, {"messages": CONVERSATION}, r"train the last turn alone \(data.train_on = 'last'\)"),
        (REFUSING_TEMPLATE, {"messages": CONVERSATION}, "the chat template refuses the conversation: roles must alter"),
    ],
)
def test_a_faulty_row_is_refused_with_its_place_and_what_to_do(
    tmp_path: Path, template: str | None, record: dict[str, object], message: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt_ids": [5], "completion_ids": [6]}) + "\n" + json.dumps(record))
    with pytest.raises(ConfigError, match=rf"rows.jsonl:2: .*{message}"):
        load_chat_examples(path, with_template(template), max_tokens=100)


def test_a_template_that_forgets_earlier_turns_can_train_the_last() -> None:
    tokenizer = with_template(FORGETFUL_TEMPLATE)
    assert marked(tokenizer, read_chat_example({"messages": CONVERSATION[:4]}, tokenizer, "last")) == (
        "<|user|>Hi<|end|><|assistant|>...<|end|><|user|>1+1<|end|><|assistant|>[2<|end|>]"
    )


def test_long_and_empty_examples_are_counted_and_none_left_is_an_error(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": "Hi", "completion": text} for text in ("Yo", "", "far too long", "")]
    path.write_text("\n".join(map(json.dumps, rows)))
    loaded = load_chat_examples(path, tokenizer, max_tokens=8)  # 5 of the prompt, 2 and the end of the first answer
    assert len(loaded.examples) == 1
    assert loaded.skipped == {"an empty completion": 2, "too long": 1}
    with pytest.raises(
        ConfigError, match=r"no example left \(2 left out for an empty completion, 2 left out for too lo"
    ):
        load_chat_examples(path, tokenizer, max_tokens=7)
