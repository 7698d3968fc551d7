"""The section of a scorer that is a user's own class."""

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from rlhf.config import Section
from services.reward.scorers.part import TextScorerSection
from services.reward.scorers.scorer import Scorer, TextPair


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

    def require_complete(self) -> None:
        """Returns if there is a class to serve. Raises: ValueError."""
        if not self.target:
            raise ValueError("kind python needs a class: --scorer.python.target module:Class")


class PythonScorerConfig(TextScorerSection):
    """A class of one's own that gives the rewards."""

    kind: Literal["python"]
    waits: ClassVar[bool] = True
    python: PythonConfig = PythonConfig()
    """python: which class, and what it may use."""

    @field_validator("python")
    @classmethod
    def _require_python(cls, value: PythonConfig) -> PythonConfig:
        value.require_complete()
        return value

    def build(self) -> Scorer[TextPair]:
        """Starts the class's process. Raises: ConfigError."""
        from services.reward.scorers.python.scorer import PythonScorer

        return PythonScorer(self.python, self.decoder())
