"""One push of weights to several replicas: it is sent to the first one, which relays it to the next, and so on.

The trainer begins a push so, and a replica goes on with it. Who fails is left out: if the first one does, the next one
takes its place here; behind it the replicas see to that themselves, and say in the end what became of each.
"""

import asyncio
from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from rlhf.client.policy import PolicyClient
from rlhf.client.rpc_errors import SilentError
from rlhf.errors import NotReadyError, OverloadedError, ServiceError
from rlhf.weights import PushHeader, PushResult, RelayedPush

RETRY_SECONDS = 0.25
"""Pause before a replica that has another push under way is asked again."""

Outcome = PushResult | RelayedPush | ServiceError
"""Of one replica: what it says it serves now (a RelayedPush if another replica sent it), or why it does not."""
Payload = Iterable[bytes | memoryview] | AsyncIterable[bytes]


async def push_to_all(
    clients: Sequence[PolicyClient],
    header: PushHeader,
    payload: Callable[[], Payload],
    *,
    deadline_seconds: float,
    patience_seconds: float,
) -> dict[str, Outcome]:
    """Returns what became of a push at every replica, by target, when all of it is known.

    Args:
        clients: of the replicas, in the order of the push; each is reached by the others under the same target.
        header: the weights to serve; its relay_targets are set here.
        payload: returns the payload from its beginning, as often as it is sent.
        deadline_seconds: when it ends at the latest, whatever the replicas do.
        patience_seconds: how long a replica may leave health checks unanswered, or refuse because it has another push
            under way, before it is left out.
    """
    ends = asyncio.get_running_loop().time() + deadline_seconds
    outcomes: dict[str, Outcome] = {}
    while len(outcomes) < len(clients):
        first, *others = clients[len(outcomes) :]
        targets = tuple(client.target for client in others)
        try:
            result = await _push(first, replace(header, relay_targets=targets), payload, ends, patience_seconds)
        except ServiceError as error:
            outcomes[first.target] = error
        else:
            outcomes[first.target] = result
            outcomes.update(_relayed(result, targets))
    return outcomes


async def _push(
    client: PolicyClient, header: PushHeader, payload: Callable[[], Payload], ends: float, patience_seconds: float
) -> PushResult:
    """Pushes to one replica, again while it has another push under way. Raises: ServiceError."""
    loop = asyncio.get_running_loop()
    gives_up = loop.time() + patience_seconds
    while (left := ends - loop.time()) > 0:
        call = client.update_weights(header, payload(), deadline_seconds=left)
        try:
            # A call outlives its deadline by little, but this wait must end whatever happens.
            async with asyncio.timeout(left):
                return await client.while_it_answers(call, patience_seconds)
        except OverloadedError:
            # Such as one whose sender has fallen silent: that push is given up after a while.
            if loop.time() >= gives_up:
                raise
            await asyncio.sleep(RETRY_SECONDS)
        except TimeoutError:
            break
    raise SilentError(f"{client.name}: did not answer within the push's deadline")


def _relayed(result: PushResult, targets: tuple[str, ...]) -> Mapping[str, Outcome]:
    """Returns the outcomes that a replica knows of those behind it.

    They are the first ones of the targets, or none: a replica that served the weights already has relayed nothing.
    """
    if tuple(each.target for each in result.relayed) != targets[: len(result.relayed)]:
        return {}
    return {each.target: NotReadyError(each.error) if each.error else each for each in result.relayed}
