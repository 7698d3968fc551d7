"""What every kind of scorer has in the configuration: its section, how it is built, and which checkpoints it reads."""

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from rlhf.config import Section
from rlhf.errors import ConfigError
from services.reward.scorers.scorer import Decoder, Scorer


class ScorerSection(Section):
    """Base of the sections that give rewards. A subclass has a `kind`, a Literal of one word, and a row in PARTS."""

    kind: Any
    waits: ClassVar[bool] = False
    """Whether the scorer spends its time waiting for another process: a sum asks it beside the others."""

    @property
    def num_checkpoints(self) -> int:
        """How many checkpoints it reads; 0: LoadModel has nothing to change."""
        return 0

    def with_checkpoints(self, paths: Sequence[str]) -> Self:
        """Returns the section with other checkpoints, `num_checkpoints` of them."""
        raise NotImplementedError

    @abstractmethod
    def build(self) -> Scorer[Any]:
        """Returns the scorer. Heavy libraries are imported here: a rule is served by a light process.

        Raises: ConfigError if its files are missing or wrong.
        """


class TextScorerSection(ScorerSection):
    """Base of the sections of scorers that read text."""

    tokenizer: str = ""
    """Rules, judge, python: directory of the tokenizer that turns token ids into text; without it they take text
    alone."""

    def decoder(self) -> Decoder | None:
        """Returns what turns token ids into text, if there is a tokenizer. Raises: ConfigError."""
        if not self.tokenizer:
            return None
        require_directory("scorer.tokenizer", self.tokenizer)
        from services.reward.scorers.text import PairTokenizer

        return PairTokenizer(self.tokenizer, "scorer.tokenizer")


def require_directory(field: str, path: str) -> None:
    """Raises ConfigError before torch is imported, which takes seconds."""
    if not Path(path).is_dir():
        raise ConfigError(f"{field} is '{path}': no such directory; give the folder of a Hugging Face checkpoint")
