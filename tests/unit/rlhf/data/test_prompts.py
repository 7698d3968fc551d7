"""Prompts: reading, refusing, drawing."""

import json
from pathlib import Path

import pytest

from rlhf.data.prompts import PromptItem, PromptSampler, load_prompts
from rlhf.errors import ConfigError
from tests.support.tiny_model import ASSISTANT_ID, EOS_ID, USER_ID, make_tiny_tokenizer


def write_lines(folder: Path, *lines: object) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def make_sampler(num_prompts: int, seed: int = 0) -> PromptSampler:
    return PromptSampler([PromptItem(f"prompt {i}", [i]) for i in range(num_prompts)], seed=seed)


def drawn(sampler: PromptSampler, count: int) -> list[int]:
    return [prompt.prompt_ids[0] for prompt in sampler.draw(count)]


def test_a_prompt_is_put_into_the_chat_template(tmp_path: Path) -> None:
    path = write_lines(tmp_path, {"prompt": "Hi"}, "", {"messages": [{"role": "user", "content": "Hi"}]})
    first, second = load_prompts(path, make_tiny_tokenizer(), max_prompt_tokens=10).items
    # <|user|> H i <|end|> <|assistant|>: two bytes between the special tokens
    assert [first.prompt_ids[i] for i in (0, 3, 4)] == [USER_ID, EOS_ID, ASSISTANT_ID]
    assert len(first.prompt_ids) == 5
    assert first == second == PromptItem("Hi", first.prompt_ids)


def test_without_a_chat_template_the_text_is_taken_as_it_is(tmp_path: Path) -> None:
    tokenizer = make_tiny_tokenizer()
    tokenizer.chat_template = None
    path = write_lines(tmp_path, {"prompt": "Hi"})
    assert len(load_prompts(path, tokenizer, max_prompt_tokens=10).items[0].prompt_ids) == 2
    path = write_lines(tmp_path, {"messages": [{"role": "user", "content": "Hi"}]})
    with pytest.raises(ConfigError, match=r":1: .* none: use \"prompt\""):
        load_prompts(path, tokenizer, max_prompt_tokens=10)


def test_over_long_prompts_are_dropped_and_counted(tmp_path: Path) -> None:
    path = write_lines(tmp_path, {"prompt": "Hi"}, {"prompt": "Hello"})  # 5 and 8 tokens
    prompts = load_prompts(path, make_tiny_tokenizer(), max_prompt_tokens=5)
    assert ([item.text for item in prompts.items], prompts.num_too_long) == (["Hi"], 1)
    with pytest.raises(ConfigError, match=r"no usable prompt \(2 are longer than prompts.max_prompt_tokens, 4\)"):
        load_prompts(path, make_tiny_tokenizer(), max_prompt_tokens=4)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", ":2: not JSON"),
        ('["a"]', ":2: a list, not an object"),
        ('{"text": "a"}', ':2: expected an object with either "prompt" or "messages"'),
        ('{"prompt": "a", "messages": []}', ":2: expected an object with either"),
        ('{"prompt": " "}', ":2: \"prompt\" is ' '"),
        ('{"messages": []}', r':2: "messages" is \[\]; it must be text or a list with at least one'),
        ('{"messages": [{"role": "user"}]}', r':2: "messages"\[0\] must be an object'),
        ('{"messages": [{"role": "assistant", "content": "a"}]}', ":2: the last of"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = write_lines(tmp_path, {"prompt": "fine"}, line)
    with pytest.raises(ConfigError, match=message) as error:
        load_prompts(path, make_tiny_tokenizer(), max_prompt_tokens=10)
    assert str(path) in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"prompts.path is '.*nowhere.jsonl': no such file"):
        load_prompts(tmp_path / "nowhere.jsonl", make_tiny_tokenizer(), max_prompt_tokens=10)


def test_every_epoch_draws_every_prompt_once_in_another_order() -> None:
    sampler = make_sampler(50)
    first, second = drawn(sampler, 50), drawn(sampler, 50)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second


def test_a_draw_goes_on_into_the_next_epoch() -> None:
    whole = drawn(make_sampler(3), 7)
    sampler = make_sampler(3)
    assert drawn(sampler, 2) + drawn(sampler, 5) == whole


def test_a_restored_sampler_draws_what_the_other_would_have() -> None:
    sampler = make_sampler(7, seed=3)
    sampler.draw(10)
    restored = make_sampler(7, seed=3)
    restored.load_state(sampler.state())
    assert restored.draw(6) == sampler.draw(6)


def test_seeds_and_group_ids_are_unique_and_depend_on_the_run_seed() -> None:
    prompts = make_sampler(4).draw(40)
    assert len({prompt.group_id for prompt in prompts}) == 40
    assert len({prompt.seed for prompt in prompts}) == 40
    assert [prompt.seed for prompt in prompts] != [prompt.seed for prompt in make_sampler(4, seed=1).draw(40)]


def test_a_file_that_changed_is_refused() -> None:
    with pytest.raises(ConfigError, match="has 4 usable prompts now, the checkpoint was written with 3"):
        make_sampler(4).load_state(make_sampler(3).state())

    edited = PromptSampler([PromptItem("prompt", [i + (i == 2)]) for i in range(3)], seed=0)
    with pytest.raises(ConfigError, match="holds other prompts than the checkpoint was written with"):
        edited.load_state(make_sampler(3).state())
