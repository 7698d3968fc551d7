"""The requests that the reward service is measured with, and the model: the same for every side of the comparison.

Light, for the process that makes the load: bench/reward_requests.py makes them.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True)
class Request:
    """One item to score."""

    prompt: str
    completion: str
    ids: list[int]
    """What the model sees, after the chat template."""
    context: str
    """The same as text with its special tokens: what OpenRLHF sends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardWork:
    """Requests and the reward model's folder; in JSON for other processes."""

    model_path: str
    requests: list[Request]

    def describe(self) -> str:
        """The work in a line."""
        lengths = sorted(len(request.ids) for request in self.requests)
        return (
            f"{len(lengths)} requests of {lengths[0]} to {lengths[-1]} tokens, {lengths[len(lengths) // 2]} in the "
            f"middle, {sum(lengths) / len(lengths):.0f} on average; model {self.model_path}"
        )

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Returns what `save` wrote."""
        fields = json.loads(path.read_text())
        return cls(model_path=fields["model_path"], requests=[Request(**each) for each in fields["requests"]])
