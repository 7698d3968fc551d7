"""Channels to services: bounded messages, keepalive, TLS and a token if they are on, retries where a call allows it."""

import json
from collections.abc import Callable, Sequence

import grpc

from rlhf.client.client_token import token_source
from rlhf.client.renewing_channel import RenewingChannel
from rlhf.client.tls import channel_credentials, watched_files
from rlhf.client.tracing import Metadata
from rlhf.serving.calls import CALLER_KEY

MAX_MESSAGE_BYTES = 64 * 1024 * 1024


def open_channel(
    target: str,
    *,
    service: str,
    retried_methods: Sequence[str],
    max_message_bytes: int = MAX_MESSAGE_BYTES,
    own_connections: bool = False,
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
        own_connections: do not share connections with other channels to the same target.
        token: shown to the service; None takes the one in the file that RLHF_TOKEN_FILE names, if it is set.
        caller: the name by which a service without a list of clients knows this one, in logs and metrics.
    Raises: ConfigError if the variables of common.tls or common.client_token are wrong.
    """
    options = _options(service, retried_methods, max_message_bytes, own_connections=own_connections)
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


def _options(
    service: str, retried_methods: Sequence[str], max_message_bytes: int, *, own_connections: bool
) -> list[tuple[str, str | int]]:
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
        ("grpc.use_local_subchannel_pool", int(own_connections)),
    ]
