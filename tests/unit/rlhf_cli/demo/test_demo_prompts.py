"""The demo's prompts: in step with their generator, disjoint, varied; and the labeller's rule, by hand."""

import json

from rlhf_cli.demo import make_prompts
from rlhf_cli.pipeline.labelling import SHORT_AND_FINISHED, label_pairs, true_score
from services.reward.scorers.rules import pattern_rule


def committed(name: str) -> list[str]:
    lines = (make_prompts.DATA_FOLDER / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["prompt"] for line in lines]


def test_the_committed_prompts_are_what_the_generator_writes() -> None:
    assert committed("train.jsonl") == make_prompts.train_prompts()
    assert committed("heldout.jsonl") == make_prompts.heldout_prompts()


def test_there_are_enough_prompts_and_no_two_are_equal() -> None:
    train, heldout = make_prompts.train_prompts(), make_prompts.heldout_prompts()
    assert len(train) == len(set(train)) == 432  # 72 subjects x 6 forms
    assert len(heldout) == len(set(heldout)) == 64  # 16 subjects x 4 forms


def test_training_and_heldout_share_neither_a_subject_nor_a_form() -> None:
    train = {subject for group in make_prompts.TRAIN_SUBJECTS.values() for subject in group}
    assert not train & set(make_prompts.HELDOUT_SUBJECTS)
    assert not set(make_prompts.TRAIN_FORMS) & set(make_prompts.HELDOUT_FORMS)


def score_by_first_digit(text: str) -> float:
    return float(text[0])


def test_without_noise_the_higher_score_is_chosen_whichever_comes_first_and_ties_are_skipped() -> None:
    candidates = [("p", "1 low", "2 high"), ("q", "3 high", "0 low"), ("r", "5 a", "5 b")]
    pairs, num_skipped = label_pairs(candidates, seed=0, noise_rate=0.0, score=score_by_first_digit)
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [("2 high", "1 low"), ("3 high", "0 low")]
    assert num_skipped == 1
    assert not any(pair.is_flipped for pair in pairs)


def test_noise_turns_about_a_tenth_of_the_choices_around_and_says_which() -> None:
    pairs, _ = label_pairs([("p", "1 low", "2 high")] * 2000, seed=1, score=score_by_first_digit)
    flipped = [pair.chosen == "1 low" for pair in pairs]
    assert flipped == [pair.is_flipped for pair in pairs]
    assert 160 < sum(flipped) < 240  # 200 expected; the standard deviation is 13.4


def test_the_true_score_is_1_for_a_short_finished_text_and_else_0() -> None:
    assert true_score("I missed the last bus home.") == 1.0
    assert true_score(" “Why” is the question?' ") == 1.0
    assert true_score("word " * 19 + "end.") == 1.0  # 20 words
    assert true_score("word " * 20 + "end.") == 0.0  # 21 words
    assert true_score("I missed the last bus and then I") == 0.0
    assert true_score("") == 0.0


def test_the_true_score_is_the_reward_services_pattern_rule() -> None:
    rule = pattern_rule(SHORT_AND_FINISHED, "match")
    for text in ("", "a short one", "a finished one.", "word " * 30 + "."):
        assert true_score(text) == rule(text)
