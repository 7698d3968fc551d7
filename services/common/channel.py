"""Channels to services: bounded messages, keepalive, TLS if it is on, retries where a call may safely be repeated."""

import json
from collections.abc import Sequence

import grpc

from rlhf_services.common.tls import channel_credentials

MAX_MESSAGE_BYTES = 64 * 1024 * 1024


def open_channel(
    target: str,
    *,
    service: str,
    retried_methods: Sequence[str],
    max_message_bytes: int = MAX_MESSAGE_BYTES,
    own_connections: bool = False,
) -> grpc.aio.Channel:
    """Returns a channel to a target; nothing is connected before the first call.

    Args:
        target: "host:port", or "dns:///name:port" to spread calls over all addresses of a headless Service.
        service: the full name of the gRPC service, such as "rlhf_services.v1.RewardService".
        retried_methods: methods without side effects. They are tried up to 4 times while the answer is UNAVAILABLE,
            within the call's deadline; all others once.
        max_message_bytes: largest message sent or received.
        own_connections: do not share connections with other channels to the same target.
    Raises: ConfigError if the variables of common.tls are wrong.
    """
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
    options = [
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
    credentials = channel_credentials()
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=options)
    return grpc.aio.secure_channel(target, credentials, options=options)
