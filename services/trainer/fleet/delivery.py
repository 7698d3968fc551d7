"""Brings one replica to the published weights, and proves that it has them."""

import asyncio
import time
from collections.abc import Awaitable, Sequence

from rlhf.errors import (
    ConfigError,
    DeadlineExceededError,
    NotReadyError,
    OverloadedError,
    PreconditionError,
    ServiceError,
)
from rlhf.learning.snapshot import WeightsSnapshot
from rlhf.pushes import Encoding, ForwardedPush, PushResult
from rlhf.run_errors import RunError
from services.trainer.config.sections import ServicesConfig
from services.trainer.fleet.orders import Delivery, Orders
from services.trainer.fleet.push import push_chain
from services.trainer.fleet.replica import Replica

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
            await _while_it_answers(replica, orders.config, _send(replica, snapshot, orders))
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


async def _while_it_answers(replica: Replica, config: ServicesConfig, work: Awaitable[None]) -> None:
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
