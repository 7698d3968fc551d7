"""What a scorer of your own is: a plain class that needs nothing of this project but, if it wants them, these names.

    class Brevity:
        def __init__(self, target: int = 100) -> None:      # keyword arguments: scorer.python.options
            self.target = target

        def score(self, pairs: list[Pair]) -> list[float]:  # one finite number for each pair, in order
            return [-abs(len(pair.completion) - self.target) / self.target for pair in pairs]

It runs in a process of its own and is called by one thread, with up to scorer.python.batch_items pairs at a time. Where
it cannot score, it raises: the pairs of that call are then asked one by one, and those that fail again have an error
instead of a reward. A call that raises leaves the object as it is. One that takes too long, ends the process or runs
out of memory costs the object: a new one is made. So it should keep nothing that a later call depends on.
"""

import contextlib
import fcntl
import hashlib
import importlib
import inspect
import json
import os
import resource
import select
import signal
import sys
import traceback
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, TextIO


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt and the completion that is to be scored, as text. The prompt may be empty."""

    prompt: str
    completion: str


class UserScorer(Protocol):
    """What the class has to have."""

    def score(self, pairs: list[Pair]) -> list[float]:
        """Returns a reward for each pair, in order; higher is better. Raises: whatever it likes."""


ENTRY_POINTS = "rlhf.scorers"
MAX_ERROR_CHARACTERS = 500


def main() -> int:
    """Serves the process on the other end of the pipes; returns the exit code."""
    _die_with(int(sys.argv[1]))
    requests, answers = _take_pipes()
    scorer: UserScorer | None = None
    for line in requests:
        request = json.loads(line)
        try:
            if scorer is None:
                scorer, answer = _make(request)
            else:
                answer = {"rewards": _score(scorer, [Pair(*pair) for pair in request["pairs"]])}
        except MemoryError:
            answer = {"error": "MemoryError: more than scorer.python.max_memory_mib lets it use", "spent": True}
        except SystemExit as error:
            answer = {"error": f"it ended its process: SystemExit({error.code!r})", "spent": True}
        except Exception as error:  # noqa: BLE001 - the user's code, which may raise anything
            answer = {"error": describe(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    return 0


def describe(error: BaseException) -> str:
    """Returns the error with the line of the user's code that it comes from, cut to a bearable length."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    text = f"{type(error).__name__}: {error}".strip()
    return (text if len(text) <= MAX_ERROR_CHARACTERS else f"{text[:MAX_ERROR_CHARACTERS]}...") + where


def _die_with(lifeline: int) -> None:
    """Has the kernel end this process and its children, which share its group, when the pipe's other end closes.

    A thread that waits for it would not do: code that keeps Python's lock, as a regular expression does, stops it.
    """
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([lifeline], [], [], 0)[0]:  # it was closed before the kernel knew whom to tell
        sys.exit(1)


def _take_pipes() -> tuple[TextIO, TextIO]:
    """Returns the requests and where answers go; what the scorer itself prints or reads goes elsewhere."""
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return requests, answers


def _make(request: dict[str, Any]) -> tuple[UserScorer, dict[str, Any]]:
    """Returns the scorer that the first request asks for, and the answer to it."""
    _limit_memory(request["max_memory_mib"])
    if request["path"]:
        sys.path.insert(0, request["path"])
    made = _find(request["target"])
    scorer: UserScorer = made(**request["options"])
    if not callable(getattr(scorer, "score", None)):
        raise TypeError("it has no method score(pairs)")
    return scorer, {"source": _digest_of_source(made)}


def _limit_memory(max_memory_mib: int) -> None:
    if max_memory_mib:
        num_bytes = max_memory_mib * 1024 * 1024
        # What it may write to, not its addresses: libraries of a GPU reserve many times what they use.
        resource.setrlimit(resource.RLIMIT_DATA, (num_bytes, num_bytes))
    # Where the machine runs out nonetheless, the kernel must end this process and not the service.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _find(target: str) -> Any:
    module, colon, name = target.partition(":")
    if colon:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        return found
    known = entry_points(group=ENTRY_POINTS)
    for entry in known:
        if entry.name == target:
            return entry.load()
    names = ", ".join(sorted(known.names)) or "none"
    raise LookupError(f"no entry point of that name in the group {ENTRY_POINTS} (there are: {names})")


def _digest_of_source(made: Any) -> str:
    """Returns the digest of the file that the class is in; empty if it has none, as a compiled one."""
    try:
        file = inspect.getsourcefile(made)
    except TypeError:
        return ""
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""


def _score(scorer: UserScorer, pairs: list[Pair]) -> list[float | dict[str, str]]:
    rewards = list(scorer.score(pairs))
    if len(rewards) != len(pairs):
        raise ValueError(f"score(pairs) returned {len(rewards)} rewards for {len(pairs)} pairs")
    return [_as_reward(reward) for reward in rewards]


def _as_reward(reward: Any) -> float | dict[str, str]:
    # Numbers of numpy and torch are no float, but know how to become one; text is no number, whatever it says.
    if not hasattr(reward, "__float__"):
        return {"error": f"score(pairs) returned {type(reward).__name__}, which is no number"}
    try:
        return float(reward)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        return {"error": f"score(pairs) returned {type(reward).__name__}, which is no number: {describe(error)}"}


if __name__ == "__main__":
    sys.exit(main())
