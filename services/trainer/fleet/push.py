"""Pushes weights along a chain of replicas: the trainer sends them once, and each replica hands them on as they arrive.

A replica that fails is left out and the rest goes on: behind the first one the replicas see to that themselves
(policy/weights/forward.py), and when the first one fails the next one takes its place here.
"""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, Protocol

from rlhf.client.policy import PolicyClient
from rlhf.errors import DeadlineExceededError, NotReadyError, OverloadedError, ServiceError
from rlhf.learning.snapshot import WeightsSnapshot
from rlhf.pushes import Encoding, ForwardedPush, PushHeader, PushResult

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
