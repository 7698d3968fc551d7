"""Preferences: pairs, margins, soft labels and rankings; what is refused, what is left out and counted; the split."""

import json
from pathlib import Path

import pytest

from rlhf.data.preferences import (
    EMPTY,
    EQUAL,
    TIED,
    TOO_LONG,
    Choice,
    PreferenceGroup,
    PreferencePair,
    Preferences,
    load_preferences,
    merge_by_prompt,
    split_by_prompt,
)
from rlhf.errors import ConfigError
from tests.support.tiny_model import ASSISTANT_ID, EOS_ID, USER_ID, make_tiny_tokenizer

PAIR = {"prompt_ids": [7], "chosen_ids": [8], "rejected_ids": [9]}
RANKING = {"prompt_ids": [7], "completion_ids": [[10], [11, 11], [12]]}


def write_lines(folder: Path, *lines: object) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return path


def load(folder: Path, *lines: object, max_tokens: int = 30) -> Preferences:
    return load_preferences(write_lines(folder, *lines), make_tiny_tokenizer(), max_tokens=max_tokens)


def make_pair(prompt: int, chosen: int = 5, rejected: int = 6) -> PreferencePair:
    return PreferencePair((prompt,), (chosen,), (rejected,))


def test_text_gets_the_chat_template_and_a_finished_completion(tmp_path: Path) -> None:
    (pair,) = load(tmp_path, {"prompt": "Hi", "chosen": "a", "rejected": "bc"}, "").pairs
    # <|user|> H i <|end|> <|assistant|> with a <|end|> or b c <|end|>: one token a byte
    assert (pair.prompt_ids[0], *pair.prompt_ids[3:]) == (USER_ID, EOS_ID, ASSISTANT_ID)
    assert (len(pair.chosen_ids), pair.chosen_ids[-1]) == (2, EOS_ID)
    assert (len(pair.rejected_ids), pair.rejected_ids[-1]) == (3, EOS_ID)


def test_messages_and_token_ids_are_taken_too(tmp_path: Path) -> None:
    user, yes, no = ({"role": r, "content": c} for r, c in (("user", "Hi"), ("assistant", "a"), ("assistant", "b")))
    first, *same, ids = load(
        tmp_path,
        {"messages": [user], "chosen": "a", "rejected": "b"},
        {"prompt": [user], "chosen": [yes], "rejected": [no]},
        {"chosen": [user, yes], "rejected": [user, no]},  # the conversation before the answers is the prompt
        {"prompt": "ignored", "chosen": [user, yes], "rejected": [user, no], "margin": None},
        {"prompt_ids": [7, 8], "chosen_ids": [9], "rejected_ids": [10, 11]},
    ).pairs
    assert len(first.prompt_ids) == 5
    assert same == [first] * 3
    assert ids == PreferencePair((7, 8), (9,), (10, 11))


def test_a_margin_and_a_soft_label_come_along_and_the_more_probable_side_is_the_chosen_one(tmp_path: Path) -> None:
    margin, likely, unlikely, even = load(
        tmp_path,
        {**PAIR, "margin": 2},
        {**PAIR, "label": 0.75},
        {**PAIR, "chosen_probability": 0.25},
        {**PAIR, "label": 0.5, "margin": 0},
    ).pairs
    assert (margin.target, margin.margin) == (1.0, 2.0)
    assert (likely.chosen_ids, likely.target) == ((8,), 0.75)
    assert (unlikely.chosen_ids, unlikely.rejected_ids, unlikely.target) == ((9,), (8,), 0.75)
    assert (even.chosen_ids, even.target) == ((8,), 0.5)


def test_a_ranking_is_one_group_with_all_its_pairs(tmp_path: Path) -> None:
    (group,) = load(tmp_path, RANKING).groups
    assert group.completions == ((10,), (11, 11), (12,))
    assert group.choices == (Choice(0, 1), Choice(0, 2), Choice(1, 2))
    assert group.num_tokens == 7  # 1 + 1, 1 + 2 and 1 + 1: each completion once
    (text,) = load(tmp_path, {"prompt": "Hi", "completions": ["a", "b", "c", "d"]}).groups
    assert len(text.choices) == 6


def test_ranks_may_come_in_any_order_and_their_ties_are_left_out_and_counted(tmp_path: Path) -> None:
    preferences = load(tmp_path, {**RANKING, "ranks": [2, 1, 2]})
    (group,) = preferences.groups
    assert group.choices == (Choice(1, 0), Choice(1, 2))
    assert preferences.skipped == {TIED: 1}


def test_what_says_nothing_or_does_not_fit_is_left_out_and_counted_never_cut(tmp_path: Path) -> None:
    preferences = load(
        tmp_path,
        PAIR,
        {"prompt_ids": [7], "chosen_ids": [8, 8, 8], "rejected_ids": [9]},  # 4 tokens: fits
        {"prompt_ids": [7], "chosen_ids": [8], "rejected_ids": [9, 9, 9, 9]},  # 5 tokens
        {"prompt_ids": [7], "chosen_ids": [8], "rejected_ids": [8]},
        {"prompt_ids": [7], "chosen_ids": [8], "rejected_ids": []},
        {"prompt_ids": [7], "completion_ids": [[1], [1], [2], []]},  # 1 and 1 are equal, 3 pairs have the empty one
        max_tokens=4,
    )
    assert [len(group.choices) for group in preferences.groups] == [1, 1, 2]
    assert preferences.groups[2].completions == ((1,), (1,), (2,))  # the empty one costs no forward pass
    assert preferences.skipped == {TOO_LONG: 1, EQUAL: 2, EMPTY: 4}


def test_an_empty_text_is_an_empty_completion_although_texts_are_ended(tmp_path: Path) -> None:
    assert load(tmp_path, PAIR, {"prompt": "p", "chosen": "", "rejected": "a"}).skipped == {EMPTY: 1}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"not JSON"),
        ("[1]", r"a list, not an object"),
        ({"prompt": "p", "text": "a"}, r'no preference in the columns "prompt", "text"; a pair needs'),
        ({"prompt": "p", "chosen": "a"}, r'"rejected" is missing, there are the columns "prompt", "chosen"'),
        ({"prompt": "p", "chosen": "a", "rejected": None}, r'"rejected" is missing'),
        ({"prompt": "p", "chosen": 5, "rejected": "a"}, r'"chosen" is 5; it must be text, or messages'),
        ({"prompt": "p", "chosen": [], "rejected": "a"}, r'"chosen" is \[\]; it must be text, or messages'),
        ({"chosen": "a", "rejected": "b"}, r'"prompt" is missing, there are the columns "chosen", "rejected"'),
        ({"prompt": " ", "chosen": "a", "rejected": "b"}, r'"prompt" is \' \'; it must be a text'),
        ({**PAIR, "chosen_ids": "8"}, r"\"chosen_ids\" is '8'; it must be a list of token ids"),
        ({**PAIR, "chosen_ids": [True]}, r'"chosen_ids" is \[True\]; it must be a list of token ids'),
        ({**PAIR, "prompt_ids": []}, r'"prompt_ids" is empty'),
        ({**PAIR, "prompt_ids": [260]}, r'"prompt_ids" has 260; .* from 0 to 259'),
        ({**PAIR, "margin": -1}, r'"margin" is -1; it must be a number of at least 0'),
        ({**PAIR, "margin": float("nan")}, r'"margin" is nan; it must be a number of at least 0'),
        ({**PAIR, "margin": "2"}, r"\"margin\" is '2'; it must be a number of at least 0"),
        ({**PAIR, "label": 1.5}, r'"label" is 1.5; it must be a probability, a number from 0 to 1'),
        ({**PAIR, "label": True}, r'"label" is True; it must be a probability'),
        ({**PAIR, "label": 1, "chosen_probability": 1}, r'both "label" and "chosen_probability"'),
        ({**PAIR, "label": 0.1, "margin": 1}, r"exchange the two completions, or leave the margin out"),
        ({"prompt": "p", "completions": ["a"]}, r'"completions" is \[\'a\'\]; it must be a list of at least two'),
        ({"prompt": "p", "completions": ["a", 1]}, r'"completions\[1\]" is 1; it must be text'),
        ({**RANKING, "ranks": [1, 2]}, r'"ranks" is \[1, 2\]; it must be a list of 3 numbers'),
        ({**RANKING, "ranks": [1, 2, float("nan")]}, r"it must be a list of 3 numbers"),
        ({**RANKING, "margin": 1}, r'"margin" belongs to a pair, not to a ranking'),
        (
            {
                "chosen": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "a"}],
                "rejected": [{"role": "user", "content": "y"}, {"role": "assistant", "content": "b"}],
            },
            r"answer different conversations",
        ),
    ],
)
def test_a_malformed_line_is_refused_with_its_place(tmp_path: Path, line: object, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"pairs.jsonl:2: .*{message}"):
        load(tmp_path, PAIR, line)


def test_a_source_that_is_missing_or_without_usable_pairs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.path is '.*nothing.jsonl': no such file"):
        load_preferences(tmp_path / "nothing.jsonl", make_tiny_tokenizer(), max_tokens=20)
    with pytest.raises(ConfigError, match=r"no pair left \(1 left out for too long; data.max_tokens is 2\)"):
        load(tmp_path, {**PAIR, "chosen_ids": [8, 8]}, max_tokens=2)
    with pytest.raises(ConfigError, match=r"no pair left \(it is empty"):
        load(tmp_path)


def test_merging_gives_each_prompt_one_group_with_each_completion_once() -> None:
    a, b = (1,), (2,)
    pairs = [
        PreferenceGroup(a, ((5,), (6,)), (Choice(0, 1),)),
        PreferenceGroup(b, ((5,), (7,)), (Choice(0, 1, 0.75),)),
        PreferenceGroup(a, ((6,), (8,)), (Choice(0, 1, 1.0, 2.0),)),
    ]
    merged = merge_by_prompt(pairs)
    assert merged[0] == PreferenceGroup(a, ((5,), (6,), (8,)), (Choice(0, 1), Choice(1, 2, 1.0, 2.0)))
    assert merged[1] == pairs[1]
    assert sum(group.num_tokens for group in pairs) == 12
    assert sum(group.num_tokens for group in merged) == 10


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
