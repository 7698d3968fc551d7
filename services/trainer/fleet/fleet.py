"""The replicas of the policy service: which there are, which may get prompts, and what all of them are to serve."""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from prometheus_client import CollectorRegistry

from rlhf.client.tasks import News
from rlhf.errors import ConfigError
from rlhf.learning.ranks import ALONE, Ranks
from rlhf.learning.snapshot import WeightsSnapshot
from rlhf.weights import Encoding
from services.trainer.config.sections import ServicesConfig
from services.trainer.fleet.discovery import discover
from services.trainer.fleet.metrics import FleetMetrics
from services.trainer.fleet.push import FleetPush, Goal, push_by_relay
from services.trainer.fleet.replica import FleetPatience, Replica, State
from services.trainer.fleet.supervision import Membership


class Fleet:
    """All replicas of the policy service of a run. A task for each keeps it at what was pushed last.

    Every rank has a fleet of its own; the main one's pushes, the others' wait until the replicas have the weights.
    """

    def __init__(
        self,
        config: ServicesConfig,
        *,
        tokenizer_digest: str,
        report: Callable[[str], None],
        caller: str = "",
        ranks: Ranks = ALONE,
        metrics: FleetMetrics | None = None,
    ) -> None:
        """Calls nothing before start().

        Args:
            config: targets, deadlines and patience. tokenizer_digest: of the tokenizer whose ids are sent.
            report: told, in a sentence, when a replica goes away or is set aside, and when it is back.
            caller: the name under which replicas know these calls. ranks: the processes of the run.
            metrics: what is counted; None counts for nobody.
        """
        self.replicas: dict[str, Replica] = {}
        """By target."""
        self.waiting_for = ""
        """Why nothing can be sampled, while wait_ready() waits; else empty."""
        self.metrics = FleetMetrics(CollectorRegistry()) if metrics is None else metrics
        self._config = config
        self._goal = Goal(
            config=config,
            tokenizer_digest=tokenizer_digest,
            pushes=ranks.is_main,
            metrics=self.metrics,
            move=self._move,
        )
        self._change = News()
        self._patience = FleetPatience(self.replicas, config, report)
        self._membership = Membership(
            self.replicas,
            self._goal,
            discover(config.policy_targets, report),
            caller=caller,
            on_change=self._notify,
            on_leave=self._patience.forget,
        )

    async def start(self) -> None:
        """Finds the replicas, and waits until one of them is ready.

        Raises: ConfigError if one of those that answer has another tokenizer; else as wait_ready().
        """
        self._membership.begin()
        while not self._membership.have_looked and not self.ready():
            await self.changed()
        with suppress(TimeoutError):  # the others have a moment to say what they are
            async with asyncio.timeout(self._config.replica_probe_seconds):
                while not self._membership.have_looked:
                    await self.changed()
        self._require_same_models()
        await self.wait_ready()
        self._patience.begin()

    async def close(self) -> None:
        """Stops looking after the replicas, and closes all channels; calls in flight are cancelled."""
        await self._membership.close()

    def ready(self) -> list[Replica]:
        """Returns the replicas that are healthy and serve what was pushed; any weights if nothing was."""
        wanted = self._goal.served
        return [
            replica
            for replica in self.replicas.values()
            if replica.state == "ready" and (wanted is None or replica.served == wanted)
        ]

    async def wait_ready(self) -> list[Replica]:
        """Returns the replicas that are ready, at least one.

        Raises: NotReadyError if none is within services.wait_for_services_seconds; if all are set aside, what was wrong
            with the first.
        """
        while True:
            ready = self.ready()
            if ready and (_any_reliable(ready) or self._patience.seconds_left() > 0):
                self.waiting_for = ""
                return ready
            self._patience.require_hope()
            left = self._patience.seconds_left()
            # A push has a deadline of its own.
            is_updating = self._goal.pushes and any(each.state == "joining" for each in self.replicas.values())
            if left <= 0 and not is_updating:
                raise self._patience.spent()
            self.waiting_for = self._patience.reasons()
            with suppress(TimeoutError):
                async with asyncio.timeout(None if is_updating else left):
                    await self.changed()

    async def changed(self) -> None:
        """Returns at the next change of membership, of a replica's state or of its outstanding completions.

        It begins to wait when it is first awaited: look at the fleet, then await it in the same task.

        Raises: ConfigError if it can never be known who the replicas are.
        """
        self._membership.require_alive()
        await self._change.wait()
        self._membership.require_alive()

    def lost(self, replica: Replica, error: Exception) -> None:
        """Takes a replica away whose call failed, until it is well again; its other calls should be given up."""
        if self.replicas.get(replica.target) is not replica or replica.state == "away":
            return
        replica.failures += 1
        replica.served = None
        replica.lost.set()
        self._move(replica, "away", str(error), None)
        self._membership.supervisors[replica.target].hold_off()

    def stale(self, replica: Replica) -> None:
        """Has a replica brought current that says its weights are too old; its other calls may end."""
        if self.replicas.get(replica.target) is not replica or replica.state != "ready":
            return
        replica.failures += 1
        replica.served = None
        self._move(replica, "joining", f"{replica.name} has other weights than it was sent", None)
        self._membership.supervisors[replica.target].hold_off()

    async def push(self, snapshot: WeightsSnapshot) -> FleetPush:
        """Makes a snapshot the one that all replicas are to serve.

        Returns when every replica that was ready has it, or is away or set aside; on other ranks than the main one, at
        once.

        Raises: ConfigError if a replica serves another type of element than the first snapshot; NotReadyError if none
            has it within the patience; if all are set aside, what was wrong with the first.
        """
        started = time.monotonic()
        is_first = self._goal.snapshot is None
        self._goal.snapshot = snapshot
        self._goal.taken.clear()
        healthy = [replica for replica in self.replicas.values() if replica.state == "ready"]
        for replica in healthy:
            self._move(replica, "joining", f"{replica.name} is being brought to {snapshot.policy_version}", None)
        if self._goal.pushes and self._config.push == "relay":
            await self._push_by_relay(healthy, snapshot)
        for supervisor in self._membership.supervisors.values():
            supervisor.wake()
        if not self._goal.pushes:
            return FleetPush(seconds=time.monotonic() - started)
        while any(each.state == "joining" for each in healthy if self.replicas.get(each.target) is each):
            await self.changed()
        if is_first:
            self._require_same_models()
        await self.wait_ready()
        return self._goal.summary(time.monotonic() - started)

    async def _push_by_relay(self, replicas: Sequence[Replica], snapshot: WeightsSnapshot) -> None:
        """Pushes by relay to replicas that need the same bytes; their supervisors see to who is left out."""
        supervisors = [self._membership.supervisors[replica.target] for replica in replicas]
        for supervisor in supervisors:
            supervisor.is_held = True
            supervisor.wake()
        try:
            by_encoding: dict[Encoding, list[Replica]] = {}
            for replica in replicas:
                by_encoding.setdefault(self._goal.encoding_for(replica, snapshot), []).append(replica)
            for encoding, alike in by_encoding.items():
                if len(alike) > 1:
                    await push_by_relay(alike, snapshot, encoding, self._goal)
        finally:
            for supervisor in supervisors:
                supervisor.is_held = False

    def _notify(self) -> None:
        if _any_reliable(self.ready()):
            self._patience.renew()
        self._change.tell()

    def _move(self, replica: Replica, state: State, reason: str, error: Exception | None) -> None:
        """Gives a replica another state; says so if it is not well, and when it is again."""
        if self.replicas.get(replica.target) is not replica:
            return
        if (replica.state, replica.reason) != (state, reason):
            replica.become(state, reason, error)
        self._patience.tell(replica)
        self.metrics.show(self.replicas.values())

    def _require_same_models(self) -> None:
        """Raises ConfigError if a replica was set aside because it serves another model than the run's."""
        for replica in self.replicas.values():
            if isinstance(replica.error, ConfigError):
                raise replica.error


def _any_reliable(replicas: Iterable[Replica]) -> bool:
    return any(not replica.failures for replica in replicas)
