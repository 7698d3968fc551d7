"""A channel that opens itself anew when its certificate is renewed; calls in flight end on the old one."""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import grpc

from rlhf.client.tracing import Metadata, traced_call

T = TypeVar("T")


class RenewingChannel(grpc.aio.Channel, Generic[T]):
    """Behaves as a channel, for our clients and for generated stubs."""

    def __init__(
        self, open_one: Callable[[T], grpc.aio.Channel], identity: Callable[[], T], metadata: Callable[[], Metadata]
    ) -> None:
        """Opens the first channel.

        Args:
            open_one: opens a channel with an identity.
            identity: says before every call what the identity is; once it changes, a new channel is opened.
            metadata: says before every call what to send along with it.
        """
        self._open_one = open_one
        self._identity = identity
        self.metadata = metadata
        self._shown = identity()
        self._current = _Opened(open_one(self._shown))
        self._retired: list[_Opened] = []

    def current(self) -> "_Opened":
        """Returns the channel for a new call."""
        identity = self._identity()
        if identity != self._shown:
            self._shown = identity
            self._retired = [opened for opened in self._retired if not opened.is_done]
            self._retired.append(self._current)
            self._current.retire()
            self._current = _Opened(self._open_one(identity))
        return self._current

    def unary_unary(self, *args: Any, **options: Any) -> Any:
        """Returns what makes calls of a method."""
        return _Method(self, "unary_unary", args, options)

    def unary_stream(self, *args: Any, **options: Any) -> Any:
        """Returns what makes calls of a method."""
        return _Method(self, "unary_stream", args, options)

    def stream_unary(self, *args: Any, **options: Any) -> Any:
        """Returns what makes calls of a method."""
        return _Method(self, "stream_unary", args, options)

    def stream_stream(self, *args: Any, **options: Any) -> Any:
        """Returns what makes calls of a method."""
        return _Method(self, "stream_stream", args, options)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Returns the state of the newest channel."""
        return self._current.channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Returns once the state of the newest channel is another one."""
        await self._current.channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Returns once the newest channel is connected."""
        await self.current().channel.channel_ready()

    async def close(self, grace: float | None = None) -> None:
        """Closes everything; calls in flight are cancelled after `grace` seconds."""
        await asyncio.gather(*(opened.channel.close(grace) for opened in (*self._retired, self._current)))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        await self.close()


class _Opened:
    """A channel, and how many calls are on it; a retired one closes with its last call."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.is_done = False
        self._methods: dict[_Method, Any] = {}
        self._num_calls = 0
        self._is_retired = False
        self._closing: asyncio.Task[None] | None = None

    def call(self, method: "_Method", args: Any, options: Any) -> Any:
        inner = self._methods.get(method)
        if inner is None:
            inner = self._methods[method] = getattr(self.channel, method.kind)(*method.args, **method.options)
        call = inner(*args, **options)
        self._num_calls += 1
        call.add_done_callback(self._ended)
        return call

    def retire(self) -> None:
        self._is_retired = True
        self._close_if_unused()

    def _ended(self, _: object) -> None:
        self._num_calls -= 1
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._is_retired and self._num_calls == 0 and self._closing is None:
            self._closing = asyncio.ensure_future(self._close())

    async def _close(self) -> None:
        await self.channel.close()
        self.is_done = True


class _Method:
    """Makes calls of one method, each on the channel of its moment."""

    def __init__(self, owner: RenewingChannel[Any], kind: str, args: Any, options: Any) -> None:
        self.kind = kind
        self.args = args
        self.options = options
        self._owner = owner

    def __call__(self, *args: Any, metadata: Metadata | None = None, **options: Any) -> Any:
        def start(headers: Metadata) -> Any:
            return self._owner.current().call(self, args, {"metadata": headers, **options})

        return traced_call(self.args[0], (*(metadata or ()), *self._owner.metadata()), start)
