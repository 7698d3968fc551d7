"""Reference log-probabilities: asked for once, kept beside the data, and never taken for other data or models."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from rlhf.errors import ConfigError, NotReadyError
from services.trainer.config.offline import DpoServicesConfig
from services.trainer.offline.dpo.reference_logprobs import PromptedCompletion, ReferenceLogprobs
from tests.support.fake_services import REFERENCE_VERSION, TOKENIZER, FakeReference

COMPLETIONS = [PromptedCompletion((5,), (6, 7, 8)), PromptedCompletion((5, 5), (9,)), PromptedCompletion((4,), (7, 7))]


class CountingReference(FakeReference):
    """Gives a token minus its id, and counts the completions."""

    def __init__(self, version: str = REFERENCE_VERSION) -> None:
        super().__init__(version=version)
        self.num_scored = 0
        self.logprobs = self._score

    def _score(self, completion_ids: list[int]) -> list[float]:
        self.num_scored += 1
        return [-float(token) for token in completion_ids]


@contextmanager
def serving(reference: FakeReference) -> Iterator[None]:
    """Serves in a thread of its own, as the code under test runs an event loop."""
    ready, done = threading.Event(), threading.Event()

    async def serve() -> None:
        async with reference:
            ready.set()
            await asyncio.to_thread(done.wait)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(30)
    try:
        yield
    finally:
        done.set()
        thread.join()


def make_source(
    folder: Path, target: str, *, tokenizer: str = TOKENIZER, data_path: Path | None = None, **options: object
) -> ReferenceLogprobs:
    path = folder / "pairs.jsonl" if data_path is None else data_path
    if data_path is None:
        path.touch()
    config = DpoServicesConfig.model_validate(
        {"reference_target": target, "wait_for_services_seconds": 0.0, "reference_items_per_call": 2, **options}
    )
    return ReferenceLogprobs(
        config, tokenizer_digest=tokenizer, data_path=str(path), run_dir=folder / "run", console=Console(quiet=True)
    )


def test_log_probabilities_are_sums_over_tokens_and_the_service_is_asked_once(tmp_path: Path) -> None:
    reference = CountingReference()
    with serving(reference):
        assert make_source(tmp_path, reference.target).logps(COMPLETIONS) == [-21.0, -9.0, -14.0]
        assert make_source(tmp_path, reference.target).logps(COMPLETIONS) == [-21.0, -9.0, -14.0]
        assert reference.num_scored == 3
        # Other completions, and another version of the reference, are not what is kept.
        assert make_source(tmp_path, reference.target).logps(COMPLETIONS[:2]) == [-21.0, -9.0]
        reference.version = "another"
        make_source(tmp_path, reference.target).logps(COMPLETIONS)
        assert reference.num_scored == 8
    assert len(list(tmp_path.glob("pairs.jsonl.reference-*.safetensors"))) == 3
    assert reference.temperatures == {1.0}


def test_a_kept_version_can_be_named_and_needs_no_service(tmp_path: Path) -> None:
    reference = CountingReference()
    with serving(reference):
        make_source(tmp_path, reference.target).logps(COMPLETIONS)
    named = make_source(tmp_path, "127.0.0.1:1", reference_version=REFERENCE_VERSION)
    assert named.logps(COMPLETIONS) == [-21.0, -9.0, -14.0]
    with pytest.raises(
        ConfigError, match=r"services.reference_version is 'other': no log-probabilities of it are kept"
    ):
        make_source(tmp_path, "127.0.0.1:1", reference_version="other").logps(COMPLETIONS)


def test_a_damaged_file_is_computed_again(tmp_path: Path) -> None:
    reference = CountingReference()
    with serving(reference):
        make_source(tmp_path, reference.target).logps(COMPLETIONS)
        (kept,) = tmp_path.glob("*.safetensors")
        kept.write_bytes(kept.read_bytes()[:-5])
        assert make_source(tmp_path, reference.target).logps(COMPLETIONS) == [-21.0, -9.0, -14.0]
        assert reference.num_scored == 6


def test_without_a_folder_of_the_data_the_run_directory_keeps_them(tmp_path: Path) -> None:
    reference = CountingReference()
    with serving(reference):
        make_source(tmp_path, reference.target, data_path=Path("org/name:config")).logps(COMPLETIONS)
    (kept,) = (tmp_path / "run").iterdir()
    assert kept.name.startswith("name-config.reference-")


def test_a_service_that_is_away_or_of_another_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotReadyError, match=r"reference service at 127.0.0.1:1: .*it did not come back in time"):
        make_source(tmp_path, "127.0.0.1:1").logps(COMPLETIONS)
    reference = CountingReference()
    with (
        serving(reference),
        pytest.raises(ConfigError, match=r"has tokenizer tokenizer-of, the trained policy has other"),
    ):
        make_source(tmp_path, reference.target, tokenizer="other").logps(COMPLETIONS)
