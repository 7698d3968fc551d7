"""What all replicas of a fleet shall serve, and what it took to bring them there."""

from collections.abc import Callable
from dataclasses import dataclass, field

from rlhf.learning.snapshot import WeightsSnapshot
from rlhf.weights import Encoding
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
    """What all shall serve; None takes any weights."""
    taken: list[ReplicaPush] = field(default_factory=list)
    """Pushes of the snapshot."""

    @property
    def served(self) -> tuple[int, str] | None:
        """Version and digest that all shall serve; None takes any."""
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
