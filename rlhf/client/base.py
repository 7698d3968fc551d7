"""What the clients share: a channel, deadlines, health, and errors that name the service and where it is."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar, Self, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from rlhf.client.channel import open_channel
from rlhf.client.rpc_errors import from_rpc_error
from rlhf.errors import DeadlineExceededError, NotReadyError, OverloadedError, ServiceError

T = TypeVar("T")


class ServiceClient:
    """Base of all clients; use as `async with RewardClient("reward:50052") as reward: ...`, or call close()."""

    service: ClassVar[str]
    """For messages: "reward service"."""
    full_name: ClassVar[str]
    """The gRPC service's full name."""
    retried_methods: ClassVar[Sequence[str]] = ()
    """Methods that may be repeated when the service is UNAVAILABLE."""

    def __init__(self, target: str, *, token: str | None = None, caller: str = "") -> None:
        """Opens a channel; nothing is connected before the first call.

        Args:
            target: "host:port", or "dns:///name:port".
            token: shown to the service; None takes the one in the file that RLHF_TOKEN_FILE names, if it is set.
            caller: a name for the service's logs, metrics and reports; one that it has authenticated comes first, and
                without either it takes the host's.
        """
        self.target = target
        self._token = token
        self._caller = caller
        self._channel = self._open_channel()
        self._health = health_pb2_grpc.HealthStub(self._channel)

    async def is_serving(self, deadline_seconds: float = 5.0) -> bool:
        """Returns whether the service answers and says that it can serve."""
        try:
            await self.check_health(deadline_seconds)
        except ServiceError:
            return False
        return True

    async def check_health(self, deadline_seconds: float = 5.0) -> None:
        """Returns if the service says that it can serve.

        Raises: DeadlineExceededError if it says nothing; another ServiceError if it cannot be reached, or cannot serve.
        """
        request = health_pb2.HealthCheckRequest(service=self.full_name)
        try:
            response = await self._health.Check(request, timeout=deadline_seconds)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                silence = f"does not answer health checks for {deadline_seconds:g} s"
                raise DeadlineExceededError(f"{self.service} at {self.target} {silence}") from None
            raise from_rpc_error(error, self.service, self.target) from None
        if response.status != health_pb2.HealthCheckResponse.SERVING:
            raise NotReadyError(f"{self.service} at {self.target} says that it cannot serve now")

    async def close(self) -> None:
        """Closes the channel; calls in flight are cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _open_channel(self, *, own_connections: bool = False) -> grpc.aio.Channel:
        return open_channel(
            self.target,
            service=self.full_name,
            retried_methods=self.retried_methods,
            own_connections=own_connections,
            token=self._token,
            caller=self._caller,
        )

    async def _call(self, call: Awaitable[T]) -> T:
        """Awaits a call; its failure comes out as an error of common.errors."""
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self.service, self.target) from None


POLL_SECONDS = 1.0


async def call_when_available(
    call: Callable[[], Awaitable[T]],
    *,
    client: ServiceClient,
    wait_seconds: float,
    on_wait: Callable[[str], None],
    remedy: str = "start it again, then continue with --resume",
) -> T:
    """Returns what `call` returns, calling again once the service is back if it was away or overloaded.

    Args:
        call: makes the call, anew each time; must be safe to repeat.
        client: whose health is asked for while waiting.
        wait_seconds: how long to wait in all before giving up.
        on_wait: told once, in a sentence that names the service, when waiting begins.
        remedy: what to do when the wait is over, for the error's message.
    Raises: NotReadyError when the wait is over; any other ServiceError of the call at once.
    """
    deadline: float | None = None
    while True:
        try:
            return await call()
        except (NotReadyError, OverloadedError) as error:
            if deadline is None:
                deadline = time.monotonic() + wait_seconds
                on_wait(f"{error}; waiting up to {wait_seconds:.0f} s for it")
            await _wait_until_serving(client, deadline, error, remedy)


async def _wait_until_serving(client: ServiceClient, deadline: float, reason: Exception, remedy: str) -> None:
    while True:
        if time.monotonic() >= deadline:
            raise NotReadyError(f"{reason}; it did not come back in time: {remedy}") from None
        await asyncio.sleep(POLL_SECONDS)
        if await client.is_serving():
            return
