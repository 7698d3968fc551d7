"""The simulated labeller: its rule by hand, its noise, and pairs that can be trained on."""

from pathlib import Path

from rlhf.data.preferences import load_preferences
from rlhf.data.prompts import PromptItem
from rlhf.rollout import Rollout
from rlhf_cli.pipeline.labelling import SHORT_AND_FINISHED, label_pairs, true_score, with_texts, write_labelled_pairs
from services.reward.scorers.rules import pattern_rule
from tests.support.tiny_model import make_tiny_tokenizer


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


def make_rollout(prompt: str, index: int, ids: list[int]) -> Rollout:
    return Rollout(
        rollout_id=f"{prompt}/{index}",
        group_id=prompt,
        prompt_ids=[5],
        completion_ids=ids,
        logprobs=[-1.0] * len(ids),
        policy_versions=[0] * len(ids),
        finish_reason="length",
    )


def test_labelled_pairs_keep_the_sampled_ids_and_can_be_trained_on(tmp_path: Path) -> None:
    tokenizer = make_tiny_tokenizer()
    good, bad = (tokenizer(text)["input_ids"] for text in ("good.", "bad"))
    items = [PromptItem("first", [5, 6]), PromptItem("second", [7])]
    rollouts = [
        [make_rollout("0", 0, bad), make_rollout("0", 1, good)],
        [make_rollout("1", 0, good), make_rollout("1", 1, good)],  # no difference: skipped
    ]
    data = write_labelled_pairs(tmp_path / "pairs.jsonl", with_texts(items, rollouts, tokenizer), seed=0)
    assert (len(data.pairs), data.num_skipped) == (1, 1)
    (pair,) = load_preferences(tmp_path / "pairs.jsonl", tokenizer, max_tokens=20).pairs
    chosen, rejected = (bad, good) if data.pairs[0].is_flipped else (good, bad)
    assert pair.prompt_ids == (5, 6)
    assert (list(pair.chosen_ids), list(pair.rejected_ids)) == (chosen, rejected)
