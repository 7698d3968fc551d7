"""The demo's prompts: in step with their generator, disjoint, varied."""

import json

from scripts import demo_prompts


def committed(name: str) -> list[str]:
    lines = (demo_prompts.DATA_FOLDER / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["prompt"] for line in lines]


def test_the_committed_prompts_are_what_the_generator_writes() -> None:
    assert committed("train.jsonl") == demo_prompts.train_prompts()
    assert committed("heldout.jsonl") == demo_prompts.heldout_prompts()


def test_there_are_enough_prompts_and_no_two_are_equal() -> None:
    train, heldout = demo_prompts.train_prompts(), demo_prompts.heldout_prompts()
    assert len(train) == len(set(train)) == 432  # 72 subjects x 6 forms
    assert len(heldout) == len(set(heldout)) == 64  # 16 subjects x 4 forms


def test_training_and_heldout_share_neither_a_subject_nor_a_form() -> None:
    train = {subject for group in demo_prompts.TRAIN_SUBJECTS.values() for subject in group}
    assert not train & set(demo_prompts.HELDOUT_SUBJECTS)
    assert not set(demo_prompts.TRAIN_FORMS) & set(demo_prompts.HELDOUT_FORMS)
