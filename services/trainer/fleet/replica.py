"""One replica of the policy service, as the fleet knows it."""

import asyncio
from collections.abc import Callable
from typing import Literal

from rlhf.client.policy import PolicyClient, PolicyModel

State = Literal["joining", "ready", "away", "set_aside"]
"""joining: it is being asked, or brought to the published weights; ready: it has them; away: it cannot be reached,
hangs or says that it cannot serve; set_aside: it answers, but it cannot be used."""


class Replica:
    """What is known of one policy service. The fleet and its keeper write it; whoever samples writes `outstanding`."""

    def __init__(self, target: str, *, caller: str = "", on_change: Callable[[], None] = lambda: None) -> None:
        """Opens a channel. Args: where it is; the name it knows us by; told when anything here changes."""
        self.target = target
        self.client = PolicyClient(target, caller=caller)
        self.model: PolicyModel | None = None
        """What it said last of itself."""
        self.state: State = "joining"
        self.reason = f"{self.name} has not answered yet"
        """Why it is not ready, in a sentence that names it; empty if it is."""
        self.error: Exception | None = None
        """Why it was set aside."""
        self.served: tuple[int, str] | None = None
        """Version and digest of the weights that it is known to serve; None if it has to be asked."""
        self.lost = asyncio.Event()
        """Set when its calls should be given up; another event takes its place when it is ready again."""
        self.failures = 0
        """Calls that failed since it last answered one; the fleet trusts it less with each."""
        self._outstanding = 0
        self._on_change = on_change

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.client.service} at {self.target}"

    @property
    def outstanding(self) -> int:
        """Completions asked for that have not arrived."""
        return self._outstanding

    @outstanding.setter
    def outstanding(self, value: int) -> None:
        self._outstanding = value
        self.touch()

    def touch(self) -> None:
        """Has those who wait for a change look."""
        self._on_change()

    def capacity(self) -> int:
        """Returns how many completions it samples side by side; more would wait inside it."""
        return 1 if self.model is None else self.model.max_sequences

    def answered(self) -> None:
        """Notes that a call brought something: it works."""
        if self.failures:
            self.failures = 0
            self.touch()

    def become(self, state: State, reason: str = "", error: Exception | None = None) -> None:
        """Takes a new state, and tells those who wait for it. A ready one gets a new `lost`."""
        self.state, self.reason, self.error = state, reason, error
        if state == "ready":
            self.reason = ""
            if self.lost.is_set():
                self.lost = asyncio.Event()
        self.touch()
