"""A scorer of one's own: pays for answers that are a JSON object with the keys that were asked for.

It needs nothing but Python, and knows nothing of this project: the service gives it objects with `prompt` and
`completion`, and takes the numbers that it returns. examples/scorers/json_answer.toml serves it.
"""

import json
from collections.abc import Sequence
from typing import Any


class JsonAnswer:
    """1 for an object with all keys, less for one that lacks some, 0 for what is no JSON object."""

    def __init__(self, required_keys: Sequence[str] = (), extra_text_costs: float = 0.5) -> None:
        """Args: keys that each earn their share; what it costs if there is text around the object."""
        if not 0 <= extra_text_costs <= 1:
            raise ValueError(f"extra_text_costs is {extra_text_costs}; it must be from 0 to 1")
        self._required_keys = required_keys
        self._extra_text_costs = extra_text_costs

    def score(self, pairs: Sequence[Any]) -> list[float]:
        """Returns a reward from 0 to 1 for each pair's completion."""
        return [self._score_one(pair.completion) for pair in pairs]

    def _score_one(self, completion: str) -> float:
        start = completion.find("{")
        if start < 0:
            return 0.0
        try:
            found, end = json.JSONDecoder().raw_decode(completion, start)
        except (ValueError, RecursionError):
            return 0.0
        share = 1.0
        if self._required_keys:
            share = sum(key in found for key in self._required_keys) / len(self._required_keys)
        has_extra_text = bool(completion[:start].strip() or completion[end:].strip())
        return share * (1.0 - self._extra_text_costs * has_extra_text)
