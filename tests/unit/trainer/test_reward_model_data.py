"""Preferences: reading, refusing, splitting; and the numbers of the report, by hand."""

import json
from pathlib import Path

import pytest
from tiny_model import ASSISTANT_ID, EOS_ID, USER_ID, make_tiny_tokenizer

from rlhf_services.common.errors import ConfigError
from rlhf_services.trainer.data.preferences import PreferencePair, load_preferences, split_by_prompt
from rlhf_services.trainer.offline.reward_model_report import pairwise_accuracy, pearson, wilson_interval


def write_lines(folder: Path, *lines: object) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def make_pair(prompt: int, chosen: int = 5, rejected: int = 6) -> PreferencePair:
    return PreferencePair((prompt,), (chosen,), (rejected,))


def test_text_gets_the_chat_template_and_a_finished_completion(tmp_path: Path) -> None:
    path = write_lines(tmp_path, {"prompt": "Hi", "chosen": "a", "rejected": "bc"}, "")
    (pair,) = load_preferences(path, make_tiny_tokenizer(), max_tokens=20).pairs
    # <|user|> H i <|end|> <|assistant|> with a <|end|> or b c <|end|>: one token a byte
    assert (pair.prompt_ids[0], *pair.prompt_ids[3:]) == (USER_ID, EOS_ID, ASSISTANT_ID)
    assert (len(pair.chosen_ids), pair.chosen_ids[-1]) == (2, EOS_ID)
    assert (len(pair.rejected_ids), pair.rejected_ids[-1]) == (3, EOS_ID)
    assert pair.num_tokens == 8


def test_messages_and_token_ids_are_taken_too(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    ids = {"prompt_ids": [7, 8], "chosen_ids": [9], "rejected_ids": [10, 11]}
    path = write_lines(tmp_path, {"messages": messages, "chosen": "a", "rejected": "b"}, ids)
    first, second = load_preferences(path, make_tiny_tokenizer(), max_tokens=20).pairs
    assert len(first.prompt_ids) == 5
    assert second == PreferencePair((7, 8), (9,), (10, 11))


def test_a_pair_that_is_too_long_is_dropped_and_counted_never_cut(tmp_path: Path) -> None:
    fits = {"prompt_ids": [7], "chosen_ids": [8], "rejected_ids": [9, 9, 9]}  # 4 tokens with the longer side
    longer = {"prompt_ids": [7], "chosen_ids": [8, 8, 8, 8], "rejected_ids": [9]}  # 5
    preferences = load_preferences(write_lines(tmp_path, fits, longer), make_tiny_tokenizer(), max_tokens=4)
    assert len(preferences.pairs) == 1
    assert preferences.num_too_long == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"pairs.jsonl:2: not JSON"),
        ("[1]", r"pairs.jsonl:2: a list, not an object"),
        ({"prompt": "p", "chosen": "same", "rejected": "same"}, r"pairs.jsonl:2: chosen and rejected are equal"),
        ({"prompt": "p", "chosen": "a"}, r"pairs.jsonl:2: rejected is None; it must be text"),
        ({"prompt": "p", "chosen": "", "rejected": "a"}, r"pairs.jsonl:2: chosen is ''; it must be text, not empty"),
        ({"chosen": "a", "rejected": "b"}, r"pairs.jsonl:2: expected an object with either"),
        ({"prompt_ids": [1], "chosen_ids": [], "rejected_ids": [2]}, r"pairs.jsonl:2: chosen_ids is \[\]"),
        ({"prompt_ids": [1], "chosen_ids": [True], "rejected_ids": [2]}, r"pairs.jsonl:2: chosen_ids is \[True\]"),
        ({"prompt_ids": [260], "chosen_ids": [1], "rejected_ids": [2]}, r"prompt_ids has 260; .* from 0 to 259"),
    ],
)
def test_a_faulty_line_is_refused_with_its_place(tmp_path: Path, line: object, message: str) -> None:
    path = write_lines(tmp_path, {"prompt": "p", "chosen": "a", "rejected": "b"}, line)
    with pytest.raises(ConfigError, match=message):
        load_preferences(path, make_tiny_tokenizer(), max_tokens=20)


def test_a_file_that_is_missing_or_without_usable_pairs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.path is '.*nothing.jsonl': cannot be read: No such file"):
        load_preferences(tmp_path / "nothing.jsonl", make_tiny_tokenizer(), max_tokens=20)
    with pytest.raises(ConfigError, match=r"no pair left \(1 longer than data.max_tokens = 4 tokens\)"):
        load_preferences(
            write_lines(tmp_path, {"prompt": "p", "chosen": "a", "rejected": "b"}), make_tiny_tokenizer(), max_tokens=4
        )


def test_the_split_is_by_prompt_and_depends_on_prompts_and_seed_alone() -> None:
    pairs = [make_pair(prompt, chosen) for prompt in range(10) for chosen in (5, 7)]
    train, heldout = split_by_prompt(pairs, 0.2, seed=3)
    assert len(heldout) == 4  # 2 of 10 prompts, 2 pairs each
    assert not {pair.prompt_ids for pair in train} & {pair.prompt_ids for pair in heldout}
    again = split_by_prompt(pairs[::-1], 0.2, seed=3)[1]
    assert set(again) == set(heldout)
    assert set(split_by_prompt(pairs, 0.2, seed=4)[1]) != set(heldout)


def test_at_least_one_prompt_is_held_out_unless_none_is_wanted_and_one_is_left_to_train_on() -> None:
    pairs = [make_pair(prompt) for prompt in range(3)]
    assert len(split_by_prompt(pairs, 0.01, seed=0)[1]) == 1
    assert split_by_prompt(pairs, 0.0, seed=0) == (pairs, [])
    with pytest.raises(ConfigError, match="of 1 distinct prompts none would be left to train on"):
        split_by_prompt(pairs[:1], 0.1, seed=0)


def test_wilson_interval_by_hand() -> None:
    # rate 0.8, n 10, z 2: center (0.8 + 0.2) / 1.4 = 0.714286; half (2 sqrt(0.016 + 0.01)) / 1.4 = 0.230350
    assert wilson_interval(0.8, 10, z=2.0) == pytest.approx((0.714286 - 0.230350, 0.714286 + 0.230350), abs=1e-5)
    # All right: the upper end is 1 and the lower one n / (n + z^2) = 10 / 14.
    assert wilson_interval(1.0, 10, z=2.0) == pytest.approx((10 / 14, 1.0))
    with pytest.raises(ValueError, match="count is 0"):
        wilson_interval(0.5, 0)


def test_a_margin_of_zero_counts_half() -> None:
    assert pairwise_accuracy([1.0, -1.0, 0.0, 2.0]) == pytest.approx(2.5 / 4)


def test_a_correlation_with_a_constant_is_not_defined() -> None:
    assert pearson([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]) == pytest.approx(1.0)
    assert pearson([1.0, 2.0], [3.0, 3.0]) is None
    assert pearson([], []) is None
