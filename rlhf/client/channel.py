"""Opens channels to services: who calls (token, certificate, name), what is tried again, how one is renewed."""

import asyncio
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import grpc

from rlhf.client.tls import Renewed, channel_credentials, watched_files
from rlhf.client.tracing import Metadata, traced_call
from rlhf.errors import ConfigError

CALLER_KEY = "x-rlhf-caller"
"""Metadata and HTTP header in which a caller that is not authenticated may say its name."""
TOKEN_VARIABLE = "RLHF_TOKEN_FILE"
"""A file with nothing but the token; it is read again when it changes."""
T = TypeVar("T")
MAX_MESSAGE_BYTES = 64 * 1024 * 1024


def open_channel(
    target: str,
    *,
    service: str,
    retried_methods: Sequence[str],
    max_message_bytes: int = MAX_MESSAGE_BYTES,
    token: str | None = None,
    caller: str = "",
) -> grpc.aio.Channel:
    """Returns a channel to a target; nothing is connected before the first call.

    A renewed certificate or token is taken up within a second, for the calls that begin then.

    Args:
        target: "host:port", or "dns:///name:port" to spread calls over all addresses of a headless Service.
        service: the full name of the gRPC service, such as "rlhf.v1.RewardService".
        retried_methods: methods without side effects. They are tried up to 4 times while the answer is UNAVAILABLE,
            within the call's deadline; all others once.
        max_message_bytes: largest message sent or received.
        token: shown to the service; None takes the one in the file that RLHF_TOKEN_FILE names, if it is set.
        caller: the name by which a service without a list of clients knows this one, in logs and metrics.
    Raises: ConfigError if the environment names a certificate or a token that cannot be used.
    """
    options = _options(service, retried_methods, max_message_bytes)
    files = watched_files()

    def open_one(pems: tuple[bytes, bytes, bytes] | None) -> grpc.aio.Channel:
        if pems is None:
            return grpc.aio.insecure_channel(target, options=options)
        return grpc.aio.secure_channel(target, channel_credentials(pems), options=options)

    return RenewingChannel(open_one, (lambda: None) if files is None else files.get, _metadata(token, caller))


def _metadata(token: str | None, caller: str) -> Callable[[], Metadata]:
    """Returns what says who calls."""
    current_token = token_source(token)
    name = [(CALLER_KEY, caller)] if caller else []

    def metadata() -> Metadata:
        shown = current_token()
        return name if shown is None else [("authorization", f"Bearer {shown}"), *name]

    return metadata


def _options(service: str, retried_methods: Sequence[str], max_message_bytes: int) -> list[tuple[str, str | int]]:
    service_config = {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [
            {
                "name": [{"service": service, "method": method} for method in retried_methods],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.1s",
                    "maxBackoff": "2s",
                    "backoffMultiplier": 3,
                    # A server that ends cancels what had reached its machine but not yet itself.
                    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
                },
            }
        ],
    }
    return [
        ("grpc.service_config", json.dumps(service_config)),
        ("grpc.enable_retries", 1),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.max_receive_message_length", max_message_bytes),
        # A server whose machine vanished closes no connection: ask every 20 s while a call is open.
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        # A service that comes back should be found at once, not after the default two minutes of backoff.
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # A replica that was replaced has a new address: ask for it at most every second, not every 30.
        ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    ]


def token_source(token: str | None = None, environment: Mapping[str, str] = os.environ) -> Callable[[], str | None]:
    """Returns a function that says which token to show now, None for none.

    Args: token: shown always, whatever the environment says.
    Raises: ConfigError for a token that cannot be sent, or a file that cannot be read.
    """
    if token is not None:
        checked = _checked(token, "token")
        return lambda: checked
    path = Path(environment.get(TOKEN_VARIABLE, ""))
    if not path.name:
        return lambda: None
    return Renewed([path], lambda: _read(path)).get


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{TOKEN_VARIABLE} is '{path}', which cannot be read ({error.strerror}); mount the file, or unset the "
            "variable to send no token"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{TOKEN_VARIABLE} '{path}': not a token; make one with `rlhf token new`") from None
    return _checked(text.strip(), f"{TOKEN_VARIABLE} '{path}'")


def _checked(token: str, where: str) -> str:
    """Returns the token. Raises ConfigError, which does not say what it is."""
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"{where}: should hold one token, of ASCII characters without spaces; make one with `rlhf token new`"
        )
    return token


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
