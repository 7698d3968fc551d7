"""Every rollout on disk before the optimizer sees it, so that a killed run trains on the very same ones again.

    RUN_DIR/journal/step-000012.rank-0.jsonl, a line each, with its checksum (journal_file.py):
        header     what the rollouts below were asked for with: policy version, sampling, configuration
        sample     a rollout with its rewards and reference log-probabilities
        dropped    a rollout without a usable number, and why
        accepted   the step was about to be trained on

A resumed run draws the same prompts, finds their rollouts here and asks no service for them. Rollouts that were asked
for with anything else than the run asks for now (another temperature, seed, prompt or learning rate) stay in the file
and are passed over. A dropped rollout is final once its step was accepted; before that it is asked for again, so that
a run which ended because too many were dropped can go on when the service is mended.

Where sampling may run ahead of training, a step's rollouts come from several versions, and a run that goes on begins to
collect it with a later one than before. The header then has the lag that is allowed in place of a version: whatever was
sampled for the step is used, and each token says by which version.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from blake3 import blake3

from rlhf.learning.ranks import ALONE, Ranks
from rlhf.learning.sample import Sample, decode_sample, encode_sample
from rlhf.logs import get_logger
from rlhf.rollout import Prompt, Sampling, expected_ids
from services.trainer.rollouts.journal_file import FORMAT_VERSION, JournalLines, JournalWriter, read_lines
from services.trainer.state.run_dir import changed_settings

log = get_logger(__name__)

REQUEST_DIGITS = 16
_FILE_NAME = re.compile(r"step-(\d+)\.rank-(\d+)\.jsonl")


class Journal:
    """The journal of one run: a file for each step and rank. All ranks see the same directory."""

    def __init__(
        self,
        run_dir: Path,
        ranks: Ranks = ALONE,
        *,
        settings: Mapping[str, Any] | None = None,
        max_policy_lag: int = 0,
        report: Callable[[str], None] | None = None,
    ) -> None:
        """Reads nothing yet.

        Args:
            run_dir: of the run. ranks: this process among all.
            settings: what the rollouts depend on besides prompts, sampling and policy version: what decides the
                weights. Must survive JSON. Rollouts that were journaled under others are passed over.
            max_policy_lag: above 0 the rollouts of a step may be of other versions than the one it is asked for with.
            report: told, in a sentence, what of the journal cannot be used.
        """
        self.folder = run_dir / "journal"
        self._ranks = ranks
        self._settings = dict(settings or {})
        self._max_policy_lag = max_policy_lag
        self._report = report or (lambda message: None)

    def open_step(self, step: int) -> "StepJournal":
        """Returns the journal of a step (from 1), with all that any rank wrote. All ranks call it together.

        Raises: RunError if a file was damaged.
        """
        opened = StepJournal(self, step)
        self._ranks.barrier()  # nobody adds to a file that another still reads
        return opened

    def prune(self, before_step: int) -> None:
        """Deletes the files of earlier steps: those up to the oldest checkpoint that is kept."""
        if self._ranks.is_main:
            for step, _, path in self.files():
                if step < before_step:
                    path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Deletes all files: the run begins anew."""
        if self._ranks.is_main:
            for _, _, path in self.files():
                path.unlink(missing_ok=True)
        self._ranks.barrier()

    def files(self) -> list[tuple[int, int, Path]]:
        """Returns (step, rank, path) of every file, in that order."""
        found = []
        for path in self.folder.glob("step-*.jsonl"):
            if match := _FILE_NAME.fullmatch(path.name):
                found.append((int(match[1]), int(match[2]), path))
        return sorted(found)

    def path(self, step: int) -> Path:
        """Returns this rank's file of a step."""
        return self.folder / f"step-{step:06d}.rank-{self._ranks.rank}.jsonl"

    def settings(self, sampling: Sampling, policy_version: int | None) -> dict[str, Any]:
        """Returns what the header of a step says, as it reads after JSON."""
        lag = self._max_policy_lag
        versions = {"max_policy_lag": lag} if lag else {"policy_version": policy_version}
        values = {**self._settings, **versions, "sampling": dataclasses.asdict(sampling)}
        read: dict[str, Any] = json.loads(json.dumps(values))
        return read

    def note(self, message: str, **details: Any) -> None:
        """Lets the user and the log know what cannot be used."""
        log.warning("journal", message=message, **details)
        self._report(message)


class StepJournal:
    """The journal of one step: what is known of it, and where the rest is added."""

    def __init__(self, journal: Journal, step: int) -> None:
        self._journal = journal
        self._step = step
        self._path = journal.path(step)
        self._files: dict[Path, JournalLines] = {}
        self._written: dict[tuple[str, str], Sample | str] = {}
        """By rollout_id and digest of the request; under the present header."""
        self._header: dict[str, Any] | None = None
        self._header_on_disk: dict[str, Any] | None = None
        self._requests: dict[str, str] = {}
        """Digest of the request, by group_id."""
        self._writer: JournalWriter | None = None
        for number, rank, path in journal.files():
            if number == step:
                lines = self._files[path] = read_lines(path)
                if lines.torn:
                    journal.note(
                        f"the last line of {path.name} was cut off while it was written; what it held is sampled again",
                        rank=rank,
                    )

    def begin(self, prompts: Sequence[Prompt], sampling: Sampling, policy_version: int | None) -> None:
        """Says what is going to be asked for: known() then answers with rollouts of such requests alone."""
        header = self._journal.settings(sampling, policy_version)
        if header != self._header:
            self._header = header
            self._written = self._usable(header)
        for prompt in prompts:
            text = json.dumps([prompt.prompt_ids, prompt.seed])
            self._requests[prompt.group_id] = blake3(text.encode()).hexdigest()[:REQUEST_DIGITS]

    def known(self, rollout_id: str) -> Sample | str | None:
        """Returns the sample, the reason why it was dropped, or None if it must be asked for."""
        return self._written.get((rollout_id, self._request(rollout_id)))

    def is_complete(self, prompts: Sequence[Prompt], sampling: Sampling, policy_version: int | None) -> bool:
        """Whether everything is known that collecting these prompts would bring, so that no service is called."""
        self.begin(prompts, sampling, policy_version)
        return all(self.known(each) is not None for prompt in prompts for each in expected_ids(prompt, sampling))

    def append(self, sample: Sample) -> None:
        """Writes a sample down. Raises: RunError if the disk is full."""
        rollout_id = sample.rollout.rollout_id
        request = self._request(rollout_id)
        self._write({"kind": "sample", "request": request, **encode_sample(sample)})
        self._written[rollout_id, request] = sample

    def append_dropped(self, rollout_id: str, reason: str) -> None:
        """Writes a dropped rollout down, with the code of the reason. Raises: RunError if the disk is full."""
        request = self._request(rollout_id)
        self._write({"kind": "dropped", "request": request, "rollout_id": rollout_id, "reason": reason})
        self._written[rollout_id, request] = reason

    def sync(self) -> None:
        """Makes the step durable and accepted: call it before the optimizer sees its samples, after the last begin().

        Raises: RunError if the disk is full.
        """
        if self._writer is None and any(self._accepted(lines) for lines in self._files.values()):
            return  # a replay
        self._write({"kind": "accepted"})
        if self._writer is not None:
            self._writer.sync()

    def close(self) -> None:
        """Closes this rank's file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write(self, record: Mapping[str, Any]) -> None:
        if self._writer is None:
            lines = self._files.get(self._path, JournalLines([], 0, False))
            self._writer = JournalWriter(self._path, lines.num_bytes)
            self._header_on_disk = lines.last_settings
        if self._header_on_disk != self._header:
            self._writer.append(
                {"kind": "header", "format_version": FORMAT_VERSION, "step": self._step, "settings": self._header}
            )
            self._header_on_disk = self._header
        self._writer.append(record)

    def _request(self, rollout_id: str) -> str:
        return self._requests[rollout_id.rpartition("/")[0]]

    def _usable(self, header: Mapping[str, Any]) -> dict[tuple[str, str], Sample | str]:
        """Returns what the files hold under this header, and reports what they hold under others."""
        usable: dict[tuple[str, str], Sample | str] = {}
        accepted = any(self._accepted(lines) for lines in self._files.values())
        others: list[Mapping[str, Any]] = []
        for lines in self._files.values():
            for settings, record in lines.with_settings():
                if settings != header:
                    others.append(settings)
                elif record["kind"] == "sample":
                    usable.setdefault((record["rollout"]["rollout_id"], record["request"]), decode_sample(record))
                elif record["kind"] == "dropped" and accepted:
                    usable.setdefault((record["rollout_id"], record["request"]), record["reason"])
        if others:
            self._journal.note(
                f"{len(others)} records in the journal of step {self._step} were drawn with other settings "
                f"({changed_settings(others[-1], header)[0]}); they are not used"
            )
        return usable

    def _accepted(self, lines: JournalLines) -> bool:
        return any(
            settings == self._header and record["kind"] == "accepted" for settings, record in lines.with_settings()
        )
