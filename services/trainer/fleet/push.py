"""Pushes weights along a chain of replicas: the trainer sends them once, and each replica hands them on as they arrive.

A replica that fails is left out and the rest goes on: behind the first one the replicas see to that themselves
(policy/weights/forward.py), and when the first one fails the next one takes its place here.
"""

import asyncio
import time
from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from typing import Any, Protocol

from rlhf.client.policy import PolicyClient
from rlhf.errors import (
    ConfigError,
    DeadlineExceededError,
    NotReadyError,
    OverloadedError,
    PreconditionError,
    RunError,
    ServiceError,
)
from rlhf.learning.snapshot import WeightsSnapshot
from rlhf.weights import Encoding, ForwardedPush, PushHeader, PushResult
from services.trainer.config.sections import ServicesConfig
from services.trainer.fleet.orders import Delivery, Orders
from services.trainer.fleet.replica import Replica

PATIENCE_SECONDS = 5.0
"""How long the first replica may leave health checks unanswered, or refuse because it has another push under way."""
PROBE_PAUSE_SECONDS = 0.5
RETRY_SECONDS = 0.25

Outcome = PushResult | ForwardedPush | ServiceError
"""Of one replica: what it says it serves now (a ForwardedPush if another replica sent it), or why it does not."""


class Pushed(Protocol):
    """What a chain needs of a replica."""

    target: str
    client: PolicyClient


async def push_chain(
    replicas: Sequence[Pushed],
    snapshot: WeightsSnapshot,
    encoding: Encoding = "full",
    *,
    deadline_seconds: float,
    patience_seconds: float = PATIENCE_SECONDS,
) -> dict[str, Outcome]:
    """Returns what became of a push at every replica, by target, when all of it is known.

    Args:
        replicas: in the order of the chain; each is reached by the others under the same target.
        snapshot: what they shall serve.
        encoding: how it is sent, to all of them: "sparse_patch" for those that serve the patch's base.
        deadline_seconds: when it ends at the latest, whatever the replicas do.
        patience_seconds: after how long a silent first replica is left out.
    """
    loop = asyncio.get_running_loop()
    ends = loop.time() + deadline_seconds
    outcomes: dict[str, Outcome] = {}
    while len(outcomes) < len(replicas):
        head, *behind = replicas[len(outcomes) :]
        header = snapshot.header(encoding, tuple(replica.target for replica in behind))
        try:
            result = await _push_to_head(head, header, snapshot, ends, patience_seconds)
        except ServiceError as error:
            outcomes[head.target] = error
            continue
        outcomes[head.target] = result
        outcomes.update(_behind(result, header.forward_targets))
    return outcomes


async def _push_to_head(
    head: Pushed, header: PushHeader, snapshot: WeightsSnapshot, ends: float, patience_seconds: float
) -> PushResult:
    """Pushes to the first replica, again while it has another push under way. Raises: ServiceError."""
    loop = asyncio.get_running_loop()
    gives_up = loop.time() + patience_seconds
    while True:
        left = ends - loop.time()
        if left <= 0:
            raise DeadlineExceededError(f"{_name(head)} was not reached within the deadline of the push")
        payload = snapshot.payload(header.encoding)
        call = head.client.update_weights(header, payload, deadline_seconds=left)
        try:
            return await _while_it_answers(head, call, patience_seconds)
        except OverloadedError:
            # Such as one whose sender has fallen silent: it is given up after a while.
            if loop.time() >= gives_up:
                raise
            await asyncio.sleep(RETRY_SECONDS)


async def _while_it_answers(head: Pushed, call: Coroutine[Any, Any, PushResult], patience_seconds: float) -> PushResult:
    """Returns the call's result. Raises: what the call raises; NotReadyError if the replica falls silent meanwhile."""
    silence = asyncio.create_task(_wait_for_silence(head, patience_seconds))
    push = asyncio.create_task(call)
    try:
        await asyncio.wait({push, silence}, return_when=asyncio.FIRST_COMPLETED)
        if push.done():
            return push.result()
        silence.result()
        raise NotReadyError(f"{_name(head)} has not answered a health check for {patience_seconds:g} s")
    finally:
        push.cancel()
        silence.cancel()
        await asyncio.gather(push, silence, return_exceptions=True)


async def _wait_for_silence(head: Pushed, patience_seconds: float) -> None:
    """Returns when the replica has left a health check unanswered for that long."""
    while True:
        try:
            await head.client.check_health(patience_seconds)
        except DeadlineExceededError:
            return
        except ServiceError:
            pass  # it says that it cannot serve, or its connection broke, which ends the push as well
        await asyncio.sleep(min(PROBE_PAUSE_SECONDS, patience_seconds / 4))


def _name(replica: Pushed) -> str:
    return f"{replica.client.service} at {replica.target}"


def _behind(result: PushResult, targets: tuple[str, ...]) -> Mapping[str, Outcome]:
    """Returns the outcomes that the first replica knows of those behind it.

    They are the first ones of the targets, or none: a replica that served the weights already has handed nothing on.
    """
    named = tuple(each.target for each in result.forwarded)
    if named != targets[: len(named)]:
        return {}
    return {each.target: NotReadyError(each.error) if each.error else each for each in result.forwarded}


BUSY_SECONDS = 0.5
"""Until a push is tried again that another one was in the way of."""


class HungError(NotReadyError):
    """The replica answers nothing, not even a health check."""


async def deliver(replica: Replica, snapshot: WeightsSnapshot, orders: Orders) -> None:
    """Pushes a snapshot to a replica, as a patch if that is less and applies; returns when the replica serves it.

    Raises: ConfigError if it serves another type of element; RunError if it answers with other weights; HungError if it
        hangs; DeadlineExceededError if it is not done within services.push_deadline_seconds; other ServiceErrors as it
        answers them.
    """
    require_dtype(replica, snapshot)
    seconds = orders.config.push_deadline_seconds
    try:
        async with asyncio.timeout(seconds):
            await _while_healthy(replica, orders.config, _send(replica, snapshot, orders))
    except TimeoutError:
        orders.metrics.push_failures.labels(replica.target).inc()
        raise DeadlineExceededError(
            f"{replica.name} did not have version {snapshot.policy_version} within services.push_deadline_seconds "
            f"({seconds:g})"
        ) from None
    except (ServiceError, RunError):
        orders.metrics.push_failures.labels(replica.target).inc()
        raise


async def deliver_chain(
    replicas: Sequence[Replica], snapshot: WeightsSnapshot, encoding: Encoding, orders: Orders
) -> None:
    """Pushes a snapshot along a chain of replicas; those that took it are ready then, the others stay as they were."""
    started = time.monotonic()
    outcomes = await push_chain(
        replicas,
        snapshot,
        encoding,
        deadline_seconds=orders.config.push_deadline_seconds,
        patience_seconds=orders.config.replica_hang_seconds,
    )
    for replica in replicas:
        outcome = outcomes[replica.target]
        if isinstance(outcome, ServiceError) or not _serves(outcome, snapshot):
            orders.metrics.push_failures.labels(replica.target).inc()
            replica.served = None
            continue
        delivery = Delivery(
            replica=replica,
            encoding=encoding,
            num_bytes=snapshot.header(encoding).payload_bytes,
            seconds=time.monotonic() - started,
            pause_seconds=outcome.pause_seconds,
            is_forwarded=isinstance(outcome, ForwardedPush),
        )
        orders.note(delivery, snapshot)
        orders.move(replica, "ready", "", None)


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
            f"{replica.name} serves {replica.model.dtype}, the trainer has {ours} (models.dtype): start the service "
            "with the trainer's dtype, or set models.dtype to the service's"
        )


def require_pushed(replica: Replica, snapshot: WeightsSnapshot, result: PushResult) -> None:
    """Raises RunError if what a replica says it serves after a push is not what was pushed."""
    if not _serves(result, snapshot):
        raise RunError(
            f"{replica.name} answered a push of version {snapshot.policy_version} (digest {snapshot.digest[:12]}) with "
            f"version {result.policy_version} (digest {result.weights_digest[:12]}); it does not serve what was pushed"
        )


async def require_health(replica: Replica, config: ServicesConfig) -> None:
    """Returns if a replica can serve. Raises: HungError if it is silent; another ServiceError if it cannot serve."""
    try:
        await replica.client.check_health(config.replica_hang_seconds)
    except DeadlineExceededError as silence:
        raise HungError(str(silence)) from None


async def _send(replica: Replica, snapshot: WeightsSnapshot, orders: Orders) -> None:
    """Sends it, all of it where a patch does not apply after all; waits for another push to end."""
    encoding = orders.encoding_for(replica, snapshot)
    while True:
        started = time.monotonic()
        header = snapshot.header(encoding)
        try:
            result = await replica.client.update_weights(
                header, snapshot.payload(encoding), deadline_seconds=orders.config.push_deadline_seconds
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
        delivery = Delivery(
            replica=replica,
            encoding=encoding,
            num_bytes=header.payload_bytes,
            seconds=time.monotonic() - started,
            pause_seconds=result.pause_seconds,
        )
        orders.note(delivery, snapshot)
        return


def _serves(result: PushResult | ForwardedPush, snapshot: WeightsSnapshot) -> bool:
    return (result.policy_version, result.weights_digest) == (snapshot.policy_version, snapshot.digest)


async def _while_healthy(replica: Replica, config: ServicesConfig, work: Awaitable[None]) -> None:
    """Returns once the work is done. Raises: HungError if the replica falls silent meanwhile; what the work raises."""

    async def watch() -> None:
        while True:
            await asyncio.sleep(config.replica_probe_seconds)
            try:
                await require_health(replica, config)
            except HungError:
                raise
            except NotReadyError:
                continue  # a connection that broke ends the work as well

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(watch())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        done = tasks[0] if tasks[0].done() else tasks[1]
        done.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
