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

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt and the completion that is to be scored, as text. The prompt may be empty."""

    prompt: str
    completion: str


class UserScorer(Protocol):
    """What the class has to have."""

    def score(self, pairs: list[Pair]) -> list[float]:
        """Returns a reward for each pair, in order; higher is better. Raises: whatever it likes."""
