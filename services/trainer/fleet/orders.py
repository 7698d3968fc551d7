"""What all replicas of a fleet shall serve, and what became of it."""

from collections.abc import Callable
from dataclasses import dataclass, field

from rlhf.learning.snapshot import WeightsSnapshot
from rlhf.weights import Encoding
from services.trainer.config.sections import ServicesConfig
from services.trainer.fleet.metrics import FleetMetrics
from services.trainer.fleet.replica import Replica, State


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """What it took to have the fleet serve a snapshot."""

    seconds: float
    pause_seconds: float = 0.0
    """The longest time that a replica sampled nothing."""
    num_bytes: int = 0
    """That the trainer sent."""
    changed_fraction: float | None = None
    """Of the elements, since the snapshot before; None if there was none to compare with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A push that a replica has taken."""

    replica: Replica
    encoding: Encoding
    num_bytes: int
    """Of the payload."""
    seconds: float
    pause_seconds: float
    """How long the replica sampled nothing."""
    is_forwarded: bool = False
    """Whether another replica sent it, not the trainer."""


@dataclass(kw_only=True)
class Orders:
    """What all keepers of a fleet have in common."""

    config: ServicesConfig
    tokenizer_digest: str
    pushes: bool
    """Whether this rank pushes; the others wait until the main one has."""
    metrics: FleetMetrics
    move: Callable[[Replica, State, str, Exception | None], None]
    """Gives a replica another state."""
    snapshot: WeightsSnapshot | None = None
    """What all shall serve; None takes any weights."""
    deliveries: list[Delivery] = field(default_factory=list)
    """Since the snapshot was published."""

    @property
    def wanted(self) -> tuple[int, str] | None:
        """Version and digest that all shall serve; None takes any."""
        return None if self.snapshot is None else (self.snapshot.policy_version, self.snapshot.digest)

    def encoding_for(self, replica: Replica, snapshot: WeightsSnapshot) -> Encoding:
        """Returns how a replica is to be sent a snapshot."""
        if self.config.push_encoding == "full" or replica.model is None:
            return "full"
        return snapshot.cheaper_for(replica.served, takes_patches=replica.model.takes_patches)

    def note(self, delivery: Delivery, snapshot: WeightsSnapshot) -> None:
        """Counts a push that was taken."""
        target = delivery.replica.target
        delivery.replica.served = (snapshot.policy_version, snapshot.digest)
        self.deliveries.append(delivery)
        self.metrics.push_seconds.labels(delivery.encoding).observe(delivery.seconds)
        self.metrics.push_bytes.labels(target, delivery.encoding).inc(delivery.num_bytes)
        self.metrics.replica_pause_seconds.labels(target).set(delivery.pause_seconds)

    def publication(self, seconds: float) -> Publication:
        """Returns what it took to bring the snapshot to the fleet, so far. Args: since it was published."""
        fraction = None if self.snapshot is None else self.snapshot.changed_fraction
        if fraction is not None:
            self.metrics.push_changed_fraction.set(fraction)
        return Publication(
            seconds=seconds,
            pause_seconds=max((each.pause_seconds for each in self.deliveries), default=0.0),
            num_bytes=sum(each.num_bytes for each in self.deliveries if not each.is_forwarded),
            changed_fraction=fraction,
        )
