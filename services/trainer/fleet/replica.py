"""One replica of the policy service as the fleet knows it, and how long a run does without replicas."""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Literal

from rlhf.client.policy import PolicyClient, PolicyModel
from rlhf.errors import NotReadyError
from services.trainer.config.sections import ServicesConfig

State = Literal["joining", "ready", "away", "set_aside"]
"""joining: it is being asked, or brought to the weights that are pushed; ready: it has them; away: it cannot be
reached, hangs or says that it cannot serve; set_aside: it answers, but it cannot be used."""


class Replica:
    """What is known of one policy service. Its supervisor and the fleet write it, `outstanding` whoever samples."""

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
        return self.client.name

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
        """Takes a new state, and wakes those who wait for it. A ready one gets a new `lost`."""
        self.state, self.reason, self.error = state, reason, error
        if state == "ready":
            self.reason = ""
            if self.lost.is_set():
                self.lost = asyncio.Event()
        self.touch()


REMEDY = "start it again, then continue with --resume"


class FleetPatience:
    """Patience with a fleet: it is renewed by every replica that can be relied on."""

    def __init__(self, replicas: Mapping[str, Replica], config: ServicesConfig, report: Callable[[str], None]) -> None:
        """Args: the fleet's, by target; how long to wait; told in sentences who went and who came."""
        self._replicas = replicas
        self._config = config
        self._report = report
        self._absent_since: float | None = None
        self._told: dict[str, State] = {}
        """The state of each replica that was reported last; only those that were ready once, or are not well."""
        self._has_begun = False

    def begin(self) -> None:
        """Says from now on who comes: those that were there at the start need no mention."""
        self._has_begun = True

    def tell(self, replica: Replica) -> None:
        """Says that a replica has gone, or is back; once for each time."""
        state, told = replica.state, self._told.get(replica.target)
        if state == "joining" or state == told:
            return
        self._told[replica.target] = state
        if state != "ready":
            self._report(self._absence(replica))
        elif told is not None:
            self._report(f"{replica.name} is back")
        elif self._has_begun:
            self._report(f"{replica.name} has joined")

    def forget(self, replica: Replica) -> None:
        """Says that a replica is no longer one of the fleet's."""
        if self._told.pop(replica.target, None) is not None:
            self._report(f"{replica.name} has left")

    def renew(self) -> None:
        """Forgets how long no replica could be relied on: one can."""
        self._absent_since = None

    def seconds_left(self) -> float:
        """Returns for how long the run may still do without a replica that can be relied on; counts from the first."""
        if self._absent_since is None:
            self._absent_since = time.monotonic()
        return self._absent_since + self._config.wait_for_services_seconds - time.monotonic()

    def spent(self) -> NotReadyError:
        """Returns what ends the run. Who asks again waits again."""
        self.renew()
        came = "it did not come back in time" if len(self._replicas) == 1 else "none of them came back in time"
        return NotReadyError(f"{self.reasons()}; {came}: {REMEDY}")

    def require_hope(self) -> None:
        """Raises what is wrong with the first replica if all are set aside: no time will mend that."""
        errors = [replica.error for replica in self._replicas.values()]
        if errors and errors[0] is not None and None not in errors:
            raise errors[0]

    def reasons(self) -> str:
        """Returns why each replica is not ready."""
        reasons = [replica.reason for replica in self._replicas.values() if replica.reason]
        return "; ".join(reasons) or f"no policy service is found at {', '.join(self._config.policy_targets)}"

    def _absence(self, replica: Replica) -> str:
        aside = " it is set aside;" if replica.state == "set_aside" else ""
        others = len([each for each in self._replicas.values() if each.state in ("ready", "joining")])
        if others:
            return f"{replica.reason};{aside} going on with {others} other{'s' if others > 1 else ''}"
        return f"{replica.reason};{aside} waiting up to {self._config.wait_for_services_seconds:.0f} s for it"
