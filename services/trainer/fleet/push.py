"""Pushes a snapshot to replicas: to one by itself or to several by relay, as a patch where that is less."""

import asyncio
import time
from collections.abc import Sequence

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
from services.trainer.fleet.goal import Goal, ReplicaPush
from services.trainer.fleet.replica import Replica

BUSY_SECONDS = 0.5
"""Until a push is tried again that another one was in the way of."""


async def push_to_replica(replica: Replica, snapshot: WeightsSnapshot, goal: Goal) -> None:
    """Pushes a snapshot to a replica, as a patch if that is less and applies; returns when the replica serves it.

    Raises: ConfigError if it serves another type of element; RunError if it answers with other weights; SilentError if
        it hangs; DeadlineExceededError if it is not done within services.push_deadline_seconds; other ServiceErrors as
        it answers them.
    """
    require_dtype(replica, snapshot)
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


def require_dtype(replica: Replica, snapshot: WeightsSnapshot) -> None:
    """Raises ConfigError if a replica serves another type of element: the bytes need not travel."""
    ours = snapshot.manifest.tensors[0].dtype
    if replica.model is not None and replica.model.dtype != ours:
        raise ConfigError(
            f"{replica.name} serves {replica.model.dtype}, the trainer has {ours} (model.dtype): start the service "
            "with the trainer's dtype, or set model.dtype to the service's"
        )


def require_pushed(replica: Replica, snapshot: WeightsSnapshot, result: PushResult) -> None:
    """Raises RunError if what a replica says it serves after a push is not what was pushed."""
    if not _serves(result, snapshot):
        raise RunError(
            f"{replica.name} answered a push of version {snapshot.policy_version} (digest {snapshot.digest[:12]}) with "
            f"version {result.policy_version} (digest {result.weights_digest[:12]}); it does not serve what was pushed"
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
        require_pushed(replica, snapshot, result)
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
