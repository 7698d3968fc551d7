"""Rewards from a user's own class, which runs in a process of its own and cannot take the service down with it."""

import json
from pathlib import Path
from typing import Any, ClassVar, Literal

from blake3 import blake3
from pydantic import Field, field_validator

from rlhf.config import Section
from rlhf.errors import ConfigError
from rlhf.logs import get_logger
from services.reward.scorers.fault_isolation import run_isolated
from services.reward.scorers.item_texts import ItemReader
from services.reward.scorers.python.process import WorkerEndedError, WorkerProcess, WorkerTimeoutError
from services.reward.scorers.scorer import Decoder, ErrorCode, Item, ScoreError, ScorerError, ScorerInfo, TextPair
from services.reward.scorers.section import TextScorerSection

log = get_logger(__name__)

MAX_STARTS = 32
"""How often the process may end in one batch. A class that does nothing else would hold up the queue for hours."""


class PythonConfig(Section):
    """A user's own Python class that scores, in a process of its own (worker.py has its contract)."""

    target: str = ""
    """Which class: "module:Class", or the name of an entry point of the group rlhf.scorers."""
    options: dict[str, Any] = Field(default={})
    """What the class is made with, as keyword arguments; JSON on the command line."""
    path: str = ""
    """A folder to import the module from, before all others; empty: only what is installed."""
    timeout_seconds: float = Field(default=30.0, gt=0)
    """How long the class may take for up to batch_items completions. Then its process is killed and started anew."""
    start_timeout_seconds: float = Field(default=120.0, gt=0)
    """How long its process may take to import the module and make the object."""
    batch_items: int = Field(default=64, ge=1)
    """Most completions of one call of the class."""
    max_memory_mib: int = Field(default=4096, ge=0)
    """Most memory of its process, in MiB; 0 is no limit."""
    version: str = ""
    """Is part of the model version that every answer names. Change it when the class or its data change; a change of
    target or options is seen without it."""

    @field_validator("target")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        module, colon, name = value.partition(":")
        if colon and not (module and all(part.isidentifier() for part in [*module.split("."), *name.split(".")])):
            raise ValueError('not a class\'s name; give "module:Class", or the name of an entry point')
        return value


class PythonScorer:
    """A Scorer around a user's own class."""

    def __init__(self, config: PythonConfig, decoder: Decoder | None) -> None:
        """Starts the process.

        Args: decoder: turns token ids into text; None if only text is taken.
        Raises: ConfigError, with the user's own error, if the class cannot be found or made.
        """
        if config.path and not Path(config.path).is_dir():
            raise ConfigError(f"scorer.python.path is '{config.path}': no such directory; give the module's folder")
        self._config = config
        self._reader = ItemReader(decoder)
        self._worker: WorkerProcess | None = None
        self._num_starts = 0
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
        """Returns the rewards of the pairs that have one, and the errors of the others."""
        outcomes: list[float | ScoreError] = []
        self._num_starts = 0
        size = self._config.batch_items
        for start in range(0, len(batch), size):
            outcomes += run_isolated(self._call, batch[start : start + size], lambda outcome: outcome)
            if all(isinstance(each, ScoreError) and each.code is ErrorCode.TIMEOUT for each in outcomes):
                # It hangs on whatever it is given.
                return outcomes + outcomes[-1:] * (len(batch) - len(outcomes))
        return outcomes

    def close(self) -> None:
        """Ends the process."""
        if self._worker is not None:
            self._worker.kill()
            self._worker = None

    def _call(self, pairs: list[TextPair]) -> list[float | ScoreError]:
        """Returns what the class answers. Raises: ScorerError if all of the call failed."""
        worker = self._ready_worker()
        seconds = self._config.timeout_seconds
        try:
            answer = worker.ask({"pairs": [[pair.prompt, pair.completion] for pair in pairs]}, seconds)
        except WorkerTimeoutError:
            reason = f"it took longer than scorer.python.timeout_seconds = {seconds:g}"
            raise self._lost(ErrorCode.TIMEOUT, reason) from None
        except WorkerEndedError as error:
            raise self._lost(ErrorCode.SCORER_FAILED, f"it ended its process: {error}") from None
        if "error" in answer:
            if answer.get("spent"):
                raise self._lost(ErrorCode.SCORER_FAILED, answer["error"])
            raise ScorerError(ErrorCode.SCORER_FAILED, self._named(answer["error"]))
        return [self._outcome(reward) for reward in answer["rewards"]]

    def _outcome(self, reward: Any) -> float | ScoreError:
        if isinstance(reward, dict):
            return ScoreError(ErrorCode.SCORER_FAILED, self._named(reward["error"]))
        return float(reward)

    def _lost(self, code: ErrorCode, reason: str) -> ScorerError:
        """Returns the error of a call that cost the process."""
        self.close()
        log.warning("the user's scorer is started anew", target=self._config.target, reason=reason)
        return ScorerError(code, self._named(reason))

    def _named(self, reason: str) -> str:
        return f"the user's scorer '{self._config.target}' failed on this item: {reason}"

    def _ready_worker(self) -> WorkerProcess:
        if self._worker is None:
            if self._num_starts == MAX_STARTS:
                raise ScorerError(
                    ErrorCode.UNAVAILABLE,
                    f"the user's scorer '{self._config.target}' was not asked: it ended its process {MAX_STARTS} times "
                    "in this batch; mend it",
                )
            self._num_starts += 1
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


class PythonScorerConfig(TextScorerSection):
    """A class of one's own that gives the rewards."""

    kind: Literal["python"]
    waits: ClassVar[bool] = True
    python: PythonConfig = PythonConfig()
    """python: which class, and what it may use."""

    @field_validator("python")
    @classmethod
    def _require_python(cls, value: PythonConfig) -> PythonConfig:
        if not value.target:
            raise ValueError("kind python needs a class: --scorer.python.target module:Class")
        return value

    def build(self) -> PythonScorer:
        """Starts the class's process. Raises: ConfigError."""
        return PythonScorer(self.python, self.decoder())
