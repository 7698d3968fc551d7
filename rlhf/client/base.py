"""What the clients share: a channel, deadlines, health, and errors that name the service and where it is."""

import asyncio
from collections.abc import Awaitable, Sequence
from typing import ClassVar, Self, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from rlhf.client.channel import open_channel
from rlhf.client.rpc_errors import SilentError, from_rpc_error
from rlhf.client.tasks import first_of
from rlhf.errors import NotReadyError, ServiceError

T = TypeVar("T")

PROBE_PAUSE_SECONDS = 0.5
"""Between two health checks of a service that has work of ours."""
_UNANSWERED = frozenset({grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})


class ServiceClient:
    """Base of all clients; use as `async with RewardClient("reward:50052") as reward: ...`, or call close()."""

    service: ClassVar[str]
    """For messages: "reward service"."""
    full_name: ClassVar[str]
    """The gRPC service's full name."""
    retried_methods: ClassVar[Sequence[str]] = ()
    """Methods that may be repeated when the service is UNAVAILABLE."""

    def __init__(
        self, target: str, *, token: str | None = None, caller: str = "", also_retried: Sequence[str] = ()
    ) -> None:
        """Opens a channel; nothing is connected before the first call.

        Args:
            target: "host:port", or "dns:///name:port".
            token: shown to the service; None takes the one in the file that RLHF_TOKEN_FILE names, if it is set.
            caller: a name for the service's logs, metrics and reports; one that it has authenticated comes first, and
                without either it takes the host's.
            also_retried: methods that may be repeated here, beside retried_methods.
        """
        self.target = target
        self._channel = open_channel(
            target,
            service=self.full_name,
            retried_methods=(*self.retried_methods, *also_retried),
            token=token,
            caller=caller,
        )
        self._health = health_pb2_grpc.HealthStub(self._channel)

    @property
    def name(self) -> str:
        """For messages: "reward service at reward:50052"."""
        return f"{self.service} at {self.target}"

    async def is_serving(self, deadline_seconds: float = 5.0) -> bool:
        """Returns whether the service answers and says that it can serve."""
        try:
            await self.check_health(deadline_seconds)
        except ServiceError:
            return False
        return True

    async def check_health(self, deadline_seconds: float = 5.0) -> None:
        """Returns if the service says that it can serve.

        Raises: SilentError if it says nothing; another ServiceError if it cannot be reached, or cannot serve.
        """
        request = health_pb2.HealthCheckRequest(service=self.full_name)
        try:
            response = await self._health.Check(request, timeout=deadline_seconds)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                raise self._silence(deadline_seconds) from None
            raise from_rpc_error(error, self.service, self.target) from None
        if response.status != health_pb2.HealthCheckResponse.SERVING:
            raise NotReadyError(f"{self.name} says that it cannot serve now")

    async def while_it_answers(self, work: Awaitable[T], patience_seconds: float) -> T:
        """Returns what `work` returns, a call of this service that may take long, and cancels it if that is in vain.

        Args: patience_seconds: how long the service may leave health checks unanswered meanwhile.
        Raises: SilentError if it falls silent for so long; what `work` raises.
        """
        result = await first_of(work, self._wait_for_silence(patience_seconds))
        if result is None:
            raise self._silence(patience_seconds)
        return result[0]

    async def close(self) -> None:
        """Closes the channel; calls in flight are cancelled."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _call(self, call: Awaitable[T]) -> T:
        """Awaits a call; its failure comes out as an error of rlhf.errors."""
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self.service, self.target) from None

    async def _wait_for_silence(self, patience_seconds: float) -> None:
        """Returns when the service has answered no health check for that long."""
        loop = asyncio.get_running_loop()
        request = health_pb2.HealthCheckRequest(service=self.full_name)
        answered = loop.time()
        while (left := answered + patience_seconds - loop.time()) > 0:
            try:
                await self._health.Check(request, timeout=left)
                answered = loop.time()
            except grpc.aio.AioRpcError as error:
                if error.code() not in _UNANSWERED:  # whatever it says, it says something
                    answered = loop.time()
            await asyncio.sleep(min(PROBE_PAUSE_SECONDS, patience_seconds / 4))

    def _silence(self, seconds: float) -> SilentError:
        return SilentError(f"{self.name} does not answer health checks for {seconds:g} s")
