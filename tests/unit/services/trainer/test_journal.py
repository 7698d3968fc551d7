"""The journal: what was written comes back bit by bit, and nothing else does."""

import dataclasses
import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf.errors import RunError
from rlhf.learning.ranks import Ranks
from rlhf.learning.sample import Sample, decode_sample, encode_sample
from rlhf.rollout import Prompt, Rollout, Sampling
from services.trainer.rollouts.journal import Journal, StepJournal
from services.trainer.rollouts.journal_file import JournalWriter

SAMPLING = Sampling(max_new_tokens=8, temperature=0.7, completions_per_prompt=2, stop_ids=(1, 2))
PROMPTS = [Prompt(group_id=str(number), prompt_ids=[3, number], seed=7 + number) for number in range(2)]
# The shortest decimal of each of these has 16 or 17 digits, or an exponent.
ODD_FLOATS = [-0.1 - 0.2, -1 / 3, -5e-324, -1.7976931348623157e308]


def make_sample(rollout_id: str, reward: float = 0.1) -> Sample:
    group_id = rollout_id.split("/")[0]
    rollout = Rollout(
        rollout_id=rollout_id,
        group_id=group_id,
        prompt_ids=[3, int(group_id)],
        completion_ids=[5, 6, 7, 2],
        logprobs=ODD_FLOATS,
        policy_versions=[4, 4, 4, 4],
        finish_reason="stop",
    )
    return Sample(
        rollout=rollout,
        rewards={"reward": reward, "taste": -0.0},
        ref_logprobs=ODD_FLOATS[::-1],
        spreads={"reward": ODD_FLOATS[0]},
    )


def begun(journal: Journal, step: int = 1, sampling: Sampling = SAMPLING, version: int = 4) -> StepJournal:
    opened = journal.open_step(step)
    opened.begin(PROMPTS, sampling, version)
    return opened


def write(run_dir: Path, *rollout_ids: str, rank: int = 0) -> Path:
    journal = Journal(run_dir, Ranks(rank))
    opened = begun(journal)
    for rollout_id in rollout_ids:
        opened.append(make_sample(rollout_id))
    opened.sync()
    opened.close()
    return journal.path(1)


def test_a_sample_comes_back_equal_in_every_bit(tmp_path: Path) -> None:
    path = write(tmp_path, "0/0")
    assert path == tmp_path / "journal" / "step-000001.rank-0.jsonl"
    opened = begun(Journal(tmp_path))
    known = opened.known("0/0")
    assert known == make_sample("0/0")
    assert isinstance(known, Sample)
    assert [x.hex() for x in known.rollout.logprobs] == [x.hex() for x in ODD_FLOATS]
    assert known.rewards["taste"].hex() == "-0x0.0p+0"
    assert opened.known("0/1") is None


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1), st.text())
def test_every_finite_float_and_every_text_survive_json(values: list[float], name: str) -> None:
    rollout = dataclasses.replace(make_sample("0/0").rollout, logprobs=values)
    sample = Sample(rollout=rollout, rewards={name: values[0]}, ref_logprobs=values)
    again = decode_sample(json.loads(json.dumps(encode_sample(sample))))
    assert again == sample
    assert [value.hex() for value in again.rollout.logprobs] == [value.hex() for value in values]


def test_a_sample_written_before_there_were_spreads_comes_back_without() -> None:
    old = encode_sample(make_sample("0/0"))
    del old["spreads"]
    assert decode_sample(old) == dataclasses.replace(make_sample("0/0"), spreads={})


def test_a_record_can_be_read_before_anything_is_synced_or_closed(tmp_path: Path) -> None:
    begun(Journal(tmp_path)).append(make_sample("1/0"))
    assert begun(Journal(tmp_path)).known("1/0") == make_sample("1/0")


def test_the_files_of_all_ranks_are_read_by_any_number_of_ranks(tmp_path: Path) -> None:
    write(tmp_path, "0/0", "0/1", rank=0)
    write(tmp_path, "1/0", "1/1", rank=1)
    assert begun(Journal(tmp_path)).is_complete(PROMPTS, SAMPLING, 4)
    assert begun(Journal(tmp_path, Ranks(rank=1, world_size=1))).known("0/1") == make_sample("0/1")


def test_a_step_is_complete_once_every_rollout_is_known(tmp_path: Path) -> None:
    write(tmp_path, "0/0", "0/1", "1/1")
    assert not Journal(tmp_path).open_step(1).is_complete(PROMPTS, SAMPLING, 4)
    assert Journal(tmp_path).open_step(1).is_complete(PROMPTS[:1], SAMPLING, 4)
    assert not Journal(tmp_path).open_step(2).is_complete(PROMPTS, SAMPLING, 4)


def test_a_dropped_rollout_is_final_once_its_step_was_accepted(tmp_path: Path) -> None:
    opened = begun(Journal(tmp_path))
    opened.append_dropped("0/0", "score_too_long")
    assert begun(Journal(tmp_path)).known("0/0") is None  # asked for again: the service may have been mended
    opened.sync()
    assert begun(Journal(tmp_path)).known("0/0") == "score_too_long"


def test_a_replayed_step_is_not_written_again(tmp_path: Path) -> None:
    path = write(tmp_path, "0/0")
    before = path.read_bytes()
    begun(Journal(tmp_path)).sync()
    assert path.read_bytes() == before


@pytest.mark.parametrize("cut", [1, 40, 300])
def test_a_torn_tail_is_cut_off_and_reported_and_the_rest_is_kept(tmp_path: Path, cut: int) -> None:
    opened = begun(Journal(tmp_path))
    for rollout_id in ("0/0", "0/1"):
        opened.append(make_sample(rollout_id))
    path = Journal(tmp_path).path(1)
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    reports: list[str] = []
    again = begun(Journal(tmp_path, report=reports.append))
    assert (again.known("0/0"), again.known("0/1")) == (make_sample("0/0"), None)
    assert reports == [
        "the last line of step-000001.rank-0.jsonl was cut off while it was written; what it held is sampled again"
    ]
    again.append(make_sample("0/1"))
    assert path.read_bytes() == whole


def test_damage_before_the_last_line_is_named_with_what_to_do(tmp_path: Path) -> None:
    path = write(tmp_path, "0/0", "0/1")
    path.write_bytes(path.read_bytes().replace(b'"stop"', b'"stap"', 1))
    with pytest.raises(RunError, match=r"step-000001.rank-0.jsonl line 2 has a wrong checksum.*Move it away and use"):
        Journal(tmp_path).open_step(1)


def test_a_journal_of_another_release_is_refused(tmp_path: Path) -> None:
    header = {"kind": "header", "format_version": 99, "step": 1, "settings": {}}
    JournalWriter(Journal(tmp_path).path(1), 0).append(header)
    with pytest.raises(RunError, match="has format_version 99, this trainer reads 1"):
        Journal(tmp_path).open_step(1)


def test_rollouts_of_other_settings_are_passed_over_with_a_note(tmp_path: Path) -> None:
    path = write(tmp_path, "0/0", "0/1")
    before = path.read_bytes()
    hotter = Sampling(max_new_tokens=8, temperature=0.9, completions_per_prompt=2, stop_ids=(1, 2))
    reports: list[str] = []
    opened = begun(Journal(tmp_path, report=reports.append), sampling=hotter)
    assert opened.known("0/0") is None
    assert len(reports) == 1
    assert "3 records in the journal of step 1 were drawn with other settings" in reports[0]
    assert "sampling.temperature 0.7 -> 0.9" in reports[0]
    opened.append(make_sample("0/0", reward=9.0))
    assert path.read_bytes().startswith(before)
    # Both kinds now stand in one file, each under its header.
    assert begun(Journal(tmp_path), sampling=hotter).known("0/0") == make_sample("0/0", reward=9.0)
    assert begun(Journal(tmp_path)).known("0/0") == make_sample("0/0")


def test_other_weights_another_prompt_and_another_seed_are_other_requests(tmp_path: Path) -> None:
    write(tmp_path, "0/0")
    assert begun(Journal(tmp_path), version=5).known("0/0") is None
    assert begun(Journal(tmp_path, settings={"learning_rate": 0.1})).known("0/0") is None
    for prompt_ids, seed in (([3, 1], 7), ([3, 0], 8), ([3, 0], None)):
        opened = Journal(tmp_path).open_step(1)
        opened.begin([Prompt(group_id="0", prompt_ids=prompt_ids, seed=seed)], SAMPLING, 4)
        assert opened.known("0/0") is None
    assert begun(Journal(tmp_path)).known("0/0") is not None


def test_only_steps_that_no_checkpoint_needs_are_pruned(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for step in (1, 2, 3):
        begun(journal, step).append(make_sample("0/0"))
    Journal(tmp_path, Ranks(rank=1, world_size=2)).prune(before_step=3)  # the main rank does it, for all
    assert len(journal.files()) == 3
    journal.prune(before_step=3)
    assert [step for step, _, _ in journal.files()] == [3]
    journal.clear()
    assert journal.files() == []


def test_a_full_disk_ends_the_run_and_leaves_what_was_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = begun(Journal(tmp_path))
    opened.append(make_sample("0/0"))
    path = Journal(tmp_path).path(1)
    before = path.read_bytes()
    real_write = os.write

    def write_ten_bytes_then_fail(descriptor: int, data: bytes) -> int:
        if path.stat().st_size > len(before):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real_write(descriptor, data[:10])

    monkeypatch.setattr(os, "write", write_ten_bytes_then_fail)
    with pytest.raises(RunError, match="No space left on device; free some space or mend the disk, then use --resume"):
        opened.append(make_sample("0/1"))
    assert path.read_bytes() == before


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "journal").write_text("not a directory")
    with pytest.raises(RunError, match=r"could not write .*step-000001.rank-0.jsonl: Not a directory|File exists"):
        begun(Journal(tmp_path)).append(make_sample("0/0"))
