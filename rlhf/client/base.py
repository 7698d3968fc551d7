"""What the clients share: a channel, deadlines, health, and errors that name the service and where it is."""

from collections.abc import Awaitable, Sequence
from typing import ClassVar, Self, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from rlhf.client.channel import open_channel
from rlhf.errors import DeadlineExceededError, NotReadyError, ServiceError, from_rpc_error

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
