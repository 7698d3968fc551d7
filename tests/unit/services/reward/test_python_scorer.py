"""What a user's own scorer may do to the service: nothing. Each test has a real process and a class written for it."""

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rlhf.errors import ConfigError
from services.reward.scorers.python.scorer import PythonConfig, PythonScorer
from services.reward.scorers.scorer import (
    ChatMessage,
    Conversation,
    ErrorCode,
    RawPair,
    ScoreError,
    TextPair,
    TokenPair,
    TokenSequence,
)

MODULE = """
import json, os, re, subprocess, sys, time

class Length:
    '''The completion's length, unless the completion is one of the words below.'''
    def __init__(self, factor=1):
        self.factor = factor
    def score(self, pairs):
        return [self.one(pair) for pair in pairs]
    def one(self, pair):
        word = pair.completion
        if word == "raise":
            raise ValueError("no such word")
        if word == "hang":
            time.sleep(60)
        if word == "lock":
            re.match(r"(a+)+$", "a" * 60 + "b")  # keeps the interpreter's lock for years
        if word == "exit":
            sys.exit(3)
        if word == "die":
            os._exit(4)
        if word == "signal":
            os.kill(os.getpid(), 11)
        if word == "eat":
            return len(bytearray(1 << 40))
        if word == "print":
            print('{"rewards": [99]}', flush=True)
            os.write(1, b"noise")
            subprocess.run(["echo", "more noise"])
            return 5
        special = {"nan": float("nan"), "text": "1.0", "none": None, "huge": 10 ** 400, "true": True}
        return special.get(word, len(word) * self.factor)

class Miscounting:
    def score(self, pairs):
        return [1.0] * (len(pairs) if len(pairs) == 1 else 7)

class Broken:
    def __init__(self, path):
        raise FileNotFoundError(f"no weights in {path}")

class Leaving:
    def __init__(self):
        os._exit(9)

class Slow:
    def __init__(self):
        time.sleep(60)

class Hanging:
    def score(self, pairs):
        with open(os.path.dirname(__file__) + "/calls", "a") as file:
            print(len(pairs), file=file)
        time.sleep(60)

class NoScorer:
    pass
"""

Make = Callable[..., PythonScorer]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes scorers of the module above; their processes end with the test."""
    (tmp_path / "own_scorers.py").write_text(MODULE)
    made: list[PythonScorer] = []

    def build(name: str = "Length", **settings: object) -> PythonScorer:
        config = {"target": f"own_scorers:{name}", "path": str(tmp_path), "timeout_seconds": 1.0, **settings}
        made.append(PythonScorer(PythonConfig.model_validate(config), decoder=None))
        return made[-1]

    yield build
    for scorer in made:
        scorer.close()


def pairs(*completions: str) -> list[TextPair]:
    return [TextPair("prompt", completion) for completion in completions]


def codes(outcomes: list[float | ScoreError]) -> list[float | ErrorCode]:
    return [outcome.code if isinstance(outcome, ScoreError) else outcome for outcome in outcomes]


def test_rewards_come_back_in_order_and_options_reach_the_class(make: Make) -> None:
    assert make(options={"factor": 2}, batch_items=2).score(pairs("a", "bcd", "ef")) == [2.0, 6.0, 4.0]


@pytest.mark.parametrize(
    ("word", "code", "message"),
    [
        ("raise", ErrorCode.SCORER_FAILED, "ValueError: no such word (own_scorers.py, line "),
        ("hang", ErrorCode.TIMEOUT, "longer than scorer.python.timeout_seconds = 1"),
        ("lock", ErrorCode.TIMEOUT, "longer than scorer.python.timeout_seconds = 1"),
        ("exit", ErrorCode.SCORER_FAILED, "SystemExit(3)"),
        ("die", ErrorCode.SCORER_FAILED, "exit code 4"),
        ("signal", ErrorCode.SCORER_FAILED, "killed by SIGSEGV"),
        ("eat", ErrorCode.SCORER_FAILED, "scorer.python.max_memory_mib"),
        ("text", ErrorCode.SCORER_FAILED, "returned str, which is no number"),
        ("none", ErrorCode.SCORER_FAILED, "returned NoneType, which is no number"),
        ("huge", ErrorCode.SCORER_FAILED, "returned int, which is no number: OverflowError"),
    ],
)
def test_what_fails_has_an_error_of_its_own_and_its_neighbours_are_right(
    make: Make, word: str, code: ErrorCode, message: str
) -> None:
    scorer = make()
    outcomes = scorer.score(pairs("ab", word, "abc"))
    assert codes(outcomes) == [2.0, code, 3.0]
    assert isinstance(outcomes[1], ScoreError)
    assert message in outcomes[1].message
    assert "own_scorers:Length" in outcomes[1].message
    assert scorer.score(pairs("abcd")) == [4.0]


def test_what_is_printed_is_no_answer(make: Make) -> None:
    assert make().score(pairs("print", "ab")) == [5.0, 2.0]


def test_nan_is_left_to_the_core_which_refuses_it_for_all_scorers(make: Make) -> None:
    first, second = make().score(pairs("nan", "true"))
    assert isinstance(first, float)
    assert math.isnan(first)
    assert second == 1.0


def test_a_wrong_count_is_never_matched_to_items(make: Make) -> None:
    scorer = make("Miscounting")
    assert scorer.score(pairs("a", "b")) == [1.0, 1.0]  # asked one by one it counts right


def test_a_class_that_only_hangs_does_not_hold_up_the_queue_for_long(make: Make, tmp_path: Path) -> None:
    outcomes = make("Hanging", timeout_seconds=0.2, batch_items=10).score(pairs(*"abcdefghijklmnopqrst"))
    assert codes(outcomes) == [ErrorCode.TIMEOUT] * 20
    # The first 10 together, then 3 of them alone; nobody waits for the others.
    assert (tmp_path / "calls").read_text().split() == ["10", "1", "1", "1"]


def test_a_class_that_only_ends_its_process_is_not_started_for_ever(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.reward.scorers.python.scorer.MAX_STARTS", 3)
    scorer = make()
    outcomes = scorer.score(pairs(*["die"] * 8))
    # In halves: 8, 4, 2 and 1 of them cost the first process and the 3 that may follow.
    assert codes(outcomes) == [ErrorCode.SCORER_FAILED] + [ErrorCode.UNAVAILABLE] * 7
    assert scorer.score(pairs("ab")) == [2.0]


def test_characters_that_are_no_text_reach_the_class(make: Make) -> None:
    assert make().score(pairs("\ud800\n\x00é")) == [4.0]


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("nowhere:Scorer", {}, "ModuleNotFoundError: No module named 'nowhere'"),
        ("own_scorers:Missing", {}, "has no attribute 'Missing'"),
        ("own_scorers:Broken", {"path": "models/x"}, "FileNotFoundError: no weights in models/x (own_scorers.py, line"),
        ("own_scorers:Length", {"size": 3}, "unexpected keyword argument 'size'"),
        ("own_scorers:Leaving", {}, "exit code 9"),
        ("own_scorers:Slow", {}, "longer than scorer.python.start_timeout_seconds = 2"),
        ("own_scorers:NoScorer", {}, "it has no method score(pairs)"),
        ("unheard_of", {}, "no entry point of that name in the group rlhf.scorers"),
    ],
)
def test_a_class_that_cannot_be_made_ends_the_start_with_the_users_own_error(
    make: Make, target: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        make(target=target, options=options, start_timeout_seconds=2)
    assert f"scorer.python.target is '{target}'" in str(caught.value)
    assert message in str(caught.value)


def test_a_class_is_found_by_the_name_of_its_entry_point(make: Make, tmp_path: Path) -> None:
    metadata = tmp_path / "own_scorers-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: own-scorers\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[rlhf.scorers]\nlength = own_scorers:Length\n")
    assert make(target="length").score(pairs("abc")) == [3.0]


def test_the_version_changes_with_the_options_and_with_the_file(make: Make, tmp_path: Path) -> None:
    first, again, other = make(), make(), make(options={"factor": 2})
    assert first.info.version == again.info.version != other.info.version
    (tmp_path / "own_scorers.py").write_text(MODULE + "# changed\n")
    assert make().info.version != first.info.version


def test_a_process_that_would_come_back_as_another_version_is_not_used(make: Make, tmp_path: Path) -> None:
    scorer = make()
    (tmp_path / "own_scorers.py").write_text(MODULE + "# changed\n")
    outcomes = scorer.score(pairs("die", "a"))
    assert codes(outcomes) == [ErrorCode.UNAVAILABLE] * 2
    assert isinstance(outcomes[0], ScoreError)
    assert "has changed since the service started" in outcomes[0].message


def test_items_are_read_as_text_or_refused(make: Make) -> None:
    scorer = make()
    question = ChatMessage("user", "2 + 2?")
    answer = ChatMessage("assistant", "4")
    assert scorer.prepare(RawPair("", "<s>4")) == TextPair("", "<s>4")
    assert scorer.prepare(Conversation((question, answer))) == TextPair("2 + 2?", "4")
    several = Conversation((ChatMessage("system", "Be brief."), question, answer))
    assert scorer.prepare(several) == TextPair("system: Be brief.\n\nuser: 2 + 2?", "4")
    for item in (TokenPair([1], [2]), TokenSequence([1, 2])):
        refused = scorer.prepare(item)
        assert isinstance(refused, ScoreError)
        assert refused.code is ErrorCode.INVALID_ITEM


SERVICE = """
import sys, threading, time
from services.reward.scorers.python.scorer import PythonConfig
from services.reward.scorers.python.scorer import PythonScorer
from services.reward.scorers.scorer import TextPair
config = PythonConfig(target="own_scorers:Length", path=sys.argv[1], timeout_seconds=60)
scorer = PythonScorer(config, None)
threading.Thread(target=scorer.score, args=([TextPair("p", sys.argv[2])],), daemon=True).start()
time.sleep(0.5)
print(scorer.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("word", ["idle", "hang", "lock"])
def test_nothing_is_left_of_it_when_the_service_is_killed(make: Make, tmp_path: Path, word: str) -> None:
    command = [sys.executable, "-c", SERVICE, str(tmp_path), word]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout is not None
        pid = int(service.stdout.readline())
        os.kill(pid, 0)  # it lives
        service.kill()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z":
        assert time.monotonic() < deadline, "the scorer's process has outlived the service"
        time.sleep(0.02)
