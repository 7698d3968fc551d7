"""Rewards from a user's own class, which runs in a process of its own and cannot take the service down with it."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from blake3 import blake3

from rlhf_services.common.errors import ConfigError
from rlhf_services.common.logs import get_logger
from rlhf_services.reward.item_texts import ItemReader
from rlhf_services.reward.python_config import PythonScorerConfig
from rlhf_services.reward.python_process import WorkerEndedError, WorkerProcess, WorkerTimeoutError
from rlhf_services.reward.rule_scorer import Decoder
from rlhf_services.reward.scorer import ErrorCode, Item, ScoreError, ScorerError, ScorerInfo, TextPair

log = get_logger(__name__)

SEARCH_TIMEOUTS = 4
MIN_SEARCH_SECONDS = 30.0
"""How long, at least and in timeouts, the items of calls that failed are asked one by one for whose fault it is. A
scorer that hangs on everything would hold up its queue for hours."""


class PythonScorer:
    """A Scorer around a user's own class."""

    def __init__(self, config: PythonScorerConfig, decoder: Decoder | None) -> None:
        """Starts the process.

        Args: decoder: turns token ids into text; None if only text is taken.
        Raises: ConfigError, with the user's own error, if the class cannot be found or made.
        """
        if config.path and not Path(config.path).is_dir():
            raise ConfigError(f"scorer.python.path is '{config.path}': no such directory; give the module's folder")
        self._config = config
        self._reader = ItemReader(decoder)
        self._worker: WorkerProcess | None = None
        try:
            self._source = self._start()
        except _StartError as error:
            raise ConfigError(
                f"scorer.python.target is '{config.target}': {error}; mend the class, scorer.python.options or "
                "scorer.python.path"
            ) from None
        parts = (
            config.target,
            json.dumps(config.options, sort_keys=True, default=str),
            config.version,
            self._source,
            self._reader.tokenizer_digest,
        )
        self.info = ScorerInfo(
            name=config.target,
            version=f"python-{blake3(repr(parts).encode()).hexdigest()[:16]}",
            tokenizer_digest=self._reader.tokenizer_digest,
            max_sequence_tokens=0,
        )

    @property
    def pid(self) -> int | None:
        """The process's id; None while there is none."""
        return None if self._worker is None else self._worker.pid

    def prepare(self, item: Item) -> TextPair | ScoreError:
        """Returns the item as text."""
        return self._reader.read(item)

    def size_of(self, prepared: TextPair) -> int:
        """Returns about the length in tokens: nothing is padded, but a run of long texts is kept short."""
        return 1 + (len(prepared.prompt) + len(prepared.completion)) // 4

    def score(self, batch: list[TextPair]) -> list[float | ScoreError]:
        """Returns the rewards of the pairs that have one, and the errors of the others.

        Raises: ScorerError, UNAVAILABLE, if the process cannot be started again.
        """
        outcomes: list[float | ScoreError] = []
        search_seconds = max(MIN_SEARCH_SECONDS, SEARCH_TIMEOUTS * self._config.timeout_seconds)
        for pairs in _chunks(batch, self._config.batch_items):
            called_at = time.monotonic()
            answer = self._call(pairs)
            if isinstance(answer, ScoreError):
                search_seconds -= time.monotonic() - called_at
                answer, search_seconds = self._search(pairs, answer, search_seconds)
            outcomes += answer
        return outcomes

    def close(self) -> None:
        """Ends the process."""
        if self._worker is not None:
            self._worker.kill()
            self._worker = None

    def _search(
        self, pairs: list[TextPair], failure: ScoreError, search_seconds: float
    ) -> tuple[list[float | ScoreError], float]:
        """Returns the outcomes of a call that failed, its pairs asked one by one, and what is left of the time."""
        if len(pairs) == 1:
            return [failure], search_seconds
        outcomes: list[float | ScoreError] = []
        for pair in pairs:
            if search_seconds <= 0:
                outcomes.append(
                    ScoreError(
                        ErrorCode.UNAVAILABLE,
                        "the user's scorer was not asked: it hung or ended on too many others of this batch "
                        f"({failure.message})",
                    )
                )
                continue
            called_at = time.monotonic()
            answer = self._call([pair])
            outcomes += [answer] if isinstance(answer, ScoreError) else answer
            search_seconds -= time.monotonic() - called_at
        return outcomes, search_seconds

    def _call(self, pairs: list[TextPair]) -> list[float | ScoreError] | ScoreError:
        """Returns what the class answers, or why all of it failed; a process that ended is missing afterwards."""
        worker = self._ready_worker()
        seconds = self._config.timeout_seconds
        try:
            answer = worker.ask({"pairs": [[pair.prompt, pair.completion] for pair in pairs]}, seconds)
        except WorkerTimeoutError:
            return self._lost(ErrorCode.TIMEOUT, f"it took longer than scorer.python.timeout_seconds = {seconds:g}")
        except WorkerEndedError as error:
            return self._lost(ErrorCode.SCORER_FAILED, f"it ended its process: {error}")
        if "error" in answer:
            if answer.get("spent"):
                return self._lost(ErrorCode.SCORER_FAILED, answer["error"])
            return ScoreError(ErrorCode.SCORER_FAILED, self._named(answer["error"]))
        return [self._outcome(reward) for reward in answer["rewards"]]

    def _outcome(self, reward: Any) -> float | ScoreError:
        if isinstance(reward, dict):
            return ScoreError(ErrorCode.SCORER_FAILED, self._named(reward["error"]))
        return float(reward)

    def _lost(self, code: ErrorCode, reason: str) -> ScoreError:
        self.close()
        log.warning("the user's scorer is started anew", target=self._config.target, reason=reason)
        return ScoreError(code, self._named(reason))

    def _named(self, reason: str) -> str:
        return f"the user's scorer '{self._config.target}' failed on this item: {reason}"

    def _ready_worker(self) -> WorkerProcess:
        if self._worker is None:
            try:
                source = self._start()
            except _StartError as error:
                raise ScorerError(
                    ErrorCode.UNAVAILABLE, f"the user's scorer '{self._config.target}' cannot be started again: {error}"
                ) from None
            if source != self._source:
                self.close()
                raise ScorerError(
                    ErrorCode.UNAVAILABLE,
                    f"the file of the user's scorer '{self._config.target}' has changed since the service started; "
                    "restart the service, so that answers name the version that gave them",
                )
        assert self._worker is not None
        return self._worker

    def _start(self) -> str:
        """Starts the process; returns the digest of the class's file. Raises: _StartError."""
        config = self._config
        worker = WorkerProcess()
        request = {
            "target": config.target,
            "options": config.options,
            "path": str(Path(config.path).resolve()) if config.path else "",
            "max_memory_mib": config.max_memory_mib,
        }
        try:
            answer = worker.ask(request, config.start_timeout_seconds)
        except WorkerTimeoutError:
            limit = config.start_timeout_seconds
            raise _StartError(f"it took longer than scorer.python.start_timeout_seconds = {limit:g}") from None
        except WorkerEndedError as error:
            raise _StartError(f"it ended its process: {error}") from None
        if "error" in answer:
            worker.kill()
            raise _StartError(answer["error"])
        self._worker = worker
        return str(answer["source"])


class _StartError(Exception):
    """Why the process did not start, in words."""


def _chunks(batch: list[TextPair], size: int) -> Iterator[list[TextPair]]:
    for start in range(0, len(batch), size):
        yield batch[start : start + size]
