"""The snapshot that all replicas of a fleet are to serve, and pushing it: to one replica, or to several by relay."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rlhf.client.push import push_to_all
from rlhf.errors import (
    ConfigError,
    DeadlineExceededError,
    OverloadedError,
    PreconditionError,
    RunError,
    ServiceError,
)
from rlhf.learning.snapshot import WeightsSnapshot
from rlhf.weights import Encoding, PushResult, RelayedPush
from services.trainer.config.sections import ServicesConfig
from services.trainer.fleet.metrics import FleetMetrics
from services.trainer.fleet.replica import Replica, State


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetPush:
    """What it took to have the whole fleet serve a snapshot."""

    seconds: float
    pause_seconds: float = 0.0
    """The longest time that a replica sampled nothing."""
    num_bytes: int = 0
    """That the trainer sent."""
    changed_fraction: float | None = None
    """Of the elements, since the snapshot before; None if there was none to compare with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaPush:
    """A push that a replica has taken."""

    replica: Replica
    encoding: Encoding
    num_bytes: int
    """Of the payload."""
    seconds: float
    pause_seconds: float
    """How long the replica sampled nothing."""
    is_relayed: bool = False
    """Whether another replica sent it, not the trainer."""


@dataclass(kw_only=True)
class Goal:
    """What the supervisors of a fleet have in common."""

    config: ServicesConfig
    tokenizer_digest: str
    pushes: bool
    """Whether this rank pushes; the others wait until the main one has."""
    metrics: FleetMetrics
    move: Callable[[Replica, State, str, Exception | None], None]
    """Gives a replica another state."""
    snapshot: WeightsSnapshot | None = None
    """The snapshot that all are to serve; None accepts any weights."""
    taken: list[ReplicaPush] = field(default_factory=list)
    """Pushes of the snapshot."""

    @property
    def served(self) -> tuple[int, str] | None:
        """Version and digest that all are to serve; None accepts any."""
        return None if self.snapshot is None else (self.snapshot.policy_version, self.snapshot.digest)

    def encoding_for(self, replica: Replica, snapshot: WeightsSnapshot) -> Encoding:
        """Returns how a replica is to be sent a snapshot."""
        if self.config.push_encoding == "full" or replica.model is None:
            return "full"
        return snapshot.cheaper_for(replica.served, takes_patches=replica.model.takes_patches)

    def note(self, push: ReplicaPush, snapshot: WeightsSnapshot) -> None:
        """Counts a push that was taken."""
        target = push.replica.target
        push.replica.served = (snapshot.policy_version, snapshot.digest)
        self.taken.append(push)
        self.metrics.push_seconds.labels(push.encoding).observe(push.seconds)
        self.metrics.push_bytes.labels(target, push.encoding).inc(push.num_bytes)
        self.metrics.replica_pause_seconds.labels(target).set(push.pause_seconds)

    def summary(self, seconds: float) -> FleetPush:
        """Returns what it took to bring the snapshot to the fleet, so far. Args: since its push began."""
        fraction = None if self.snapshot is None else self.snapshot.changed_fraction
        if fraction is not None:
            self.metrics.push_changed_fraction.set(fraction)
        return FleetPush(
            seconds=seconds,
            pause_seconds=max((each.pause_seconds for each in self.taken), default=0.0),
            num_bytes=sum(each.num_bytes for each in self.taken if not each.is_relayed),
            changed_fraction=fraction,
        )


BUSY_SECONDS = 0.5
"""Until a push is tried again that another one was in the way of."""


async def push_to_replica(replica: Replica, snapshot: WeightsSnapshot, goal: Goal) -> None:
    """Pushes a snapshot to a replica, as a patch if that is less and applies; returns when the replica serves it.

    Raises: ConfigError if it serves another type of element; RunError if it answers with other weights; SilentError if
        it hangs; DeadlineExceededError if it is not done within services.push_deadline_seconds; other ServiceErrors as
        it answers them.
    """
    ours = snapshot.manifest.tensors[0].dtype
    if replica.model is not None and replica.model.dtype != ours:  # the bytes need not travel
        raise ConfigError(
            f"{replica.name} serves {replica.model.dtype}, the trainer has {ours} (model.dtype): start the service "
            "with the trainer's dtype, or set model.dtype to the service's"
        )
    seconds = goal.config.push_deadline_seconds
    try:
        async with asyncio.timeout(seconds):
            work = _send(replica, snapshot, goal)
            await replica.client.while_it_answers(work, goal.config.replica_hang_seconds)
    except TimeoutError:
        goal.metrics.push_failures.labels(replica.target).inc()
        raise DeadlineExceededError(
            f"{replica.name} did not have version {snapshot.policy_version} within services.push_deadline_seconds "
            f"({seconds:g})"
        ) from None
    except (ServiceError, RunError):
        goal.metrics.push_failures.labels(replica.target).inc()
        raise


async def push_by_relay(replicas: Sequence[Replica], snapshot: WeightsSnapshot, encoding: Encoding, goal: Goal) -> None:
    """Pushes a snapshot to the first replica, which relays it to the next, and so on.

    Those that took it are ready then, the others stay as they were.
    """
    started = time.monotonic()
    outcomes = await push_to_all(
        [replica.client for replica in replicas],
        snapshot.header(encoding),
        lambda: snapshot.payload(encoding),
        deadline_seconds=goal.config.push_deadline_seconds,
        patience_seconds=goal.config.replica_hang_seconds,
    )
    for replica in replicas:
        outcome = outcomes[replica.target]
        if isinstance(outcome, ServiceError) or not _serves(outcome, snapshot):
            goal.metrics.push_failures.labels(replica.target).inc()
            replica.served = None
            continue
        push = ReplicaPush(
            replica=replica,
            encoding=encoding,
            num_bytes=snapshot.header(encoding).payload_bytes,
            seconds=time.monotonic() - started,
            pause_seconds=outcome.pause_seconds,
            is_relayed=isinstance(outcome, RelayedPush),
        )
        goal.note(push, snapshot)
        goal.move(replica, "ready", "", None)


def require_tokenizer(name: str, theirs: str, ours: str) -> None:
    """Raises ConfigError if a service has another tokenizer than the trained policy. Args: the service; digests."""
    if theirs == ours:
        return
    named = f"tokenizer {theirs[:12]}" if theirs else "no tokenizer"
    raise ConfigError(
        f"{name} has {named}, the trained policy has tokenizer {ours[:12]}: token ids would mean different things; "
        "start the service with the policy's model or tokenizer"
    )


async def _send(replica: Replica, snapshot: WeightsSnapshot, goal: Goal) -> None:
    """Sends it, all of it where a patch does not apply after all; waits for another push to end."""
    encoding = goal.encoding_for(replica, snapshot)
    while True:
        started = time.monotonic()
        header = snapshot.header(encoding)
        try:
            result = await replica.client.update_weights(
                header, snapshot.payload(encoding), deadline_seconds=goal.config.push_deadline_seconds
            )
        except PreconditionError:
            if encoding == "full":
                raise
            encoding = "full"
            continue
        except OverloadedError:
            await asyncio.sleep(BUSY_SECONDS)
            continue
        if not _serves(result, snapshot):
            raise RunError(
                f"{replica.name} answered a push of version {snapshot.policy_version} (digest {snapshot.digest[:12]}) "
                f"with version {result.policy_version} (digest {result.weights_digest[:12]}); it does not serve what "
                "was pushed"
            )
        push = ReplicaPush(
            replica=replica,
            encoding=encoding,
            num_bytes=header.payload_bytes,
            seconds=time.monotonic() - started,
            pause_seconds=result.pause_seconds,
        )
        goal.note(push, snapshot)
        return


def _serves(result: PushResult | RelayedPush, snapshot: WeightsSnapshot) -> bool:
    return (result.policy_version, result.weights_digest) == (snapshot.policy_version, snapshot.digest)
