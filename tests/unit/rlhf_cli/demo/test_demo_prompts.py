"""The demo's prompts: in step with their generator, disjoint, varied."""

import json

from rlhf_cli.demo import make_prompts


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
