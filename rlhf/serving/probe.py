"""The command rlhf-probe: asks a service's health, as containers and Kubernetes do every few seconds.

It loads grpc and nothing heavier (no protobuf, no configuration), since it starts anew for every question.
"""

import argparse
import os
import sys
from collections.abc import Sequence

import grpc

from rlhf.client.rpc_errors import tls_hint
from rlhf.client.tls import open_blocking_channel
from rlhf.errors import ConfigError

TARGET_VARIABLE = "RLHF_PROBE_TARGET"
DEADLINE_SECONDS = 3.0
LIVE = "live"
"""Health name of the process itself: SERVING while it answers, whether or not it can serve calls."""

# grpc.health.v1.HealthCheckResponse.ServingStatus.
_STATUS_NAMES = ("UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN")
_SERVING = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 if the service is SERVING, 1 if not (a line on stderr says why), 2 for a wrong configuration."""
    parser = argparse.ArgumentParser(prog="rlhf-probe", description="Exit 0 if a service says that it is SERVING.")
    parser.add_argument(
        "target",
        nargs="?",
        default=os.environ.get(TARGET_VARIABLE),
        metavar="TARGET",
        help=f"host:port of the service; the variable {TARGET_VARIABLE} if not given",
    )
    parser.add_argument(
        "--live", action="store_true", help="ask whether the process answers, not whether it can serve calls"
    )
    arguments = parser.parse_args(argv)
    if not arguments.target:
        parser.error(f"TARGET is missing: give host:port, or set {TARGET_VARIABLE}")
    try:
        status = ask_health(arguments.target, LIVE if arguments.live else "")
    except ConfigError as error:
        print(f"rlhf-probe: {error}", file=sys.stderr)
        return 2
    except grpc.RpcError as error:
        print(f"rlhf-probe: {arguments.target}: {_explain(error)}", file=sys.stderr)
        return 1
    if status == _SERVING:
        return 0
    name = _STATUS_NAMES[status] if status < len(_STATUS_NAMES) else f"status {status}"
    print(f"rlhf-probe: {arguments.target} says {name}; its log and rlhf_rpc metrics say more", file=sys.stderr)
    return 1


def ask_health(target: str, name: str, deadline_seconds: float = DEADLINE_SECONDS) -> int:
    """Returns the status that the health service at a target gives to a name. Raises: grpc.RpcError, ConfigError."""
    with open_blocking_channel(target) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check", encode_request, decode_status)
        return int(check(name, timeout=deadline_seconds))


def encode_request(name: str) -> bytes:
    """Returns the protobuf bytes of HealthCheckRequest(service=name); a name is shorter than 128 bytes."""
    data = name.encode()
    return b"\x0a" + bytes([len(data)]) + data if data else b""


def decode_status(data: bytes) -> int:
    """Returns the field `status` of a HealthCheckResponse; 0 (UNKNOWN) if it is not there."""
    return data[1] if len(data) >= 2 and data[0] == 0x08 else 0


def _explain(error: grpc.RpcError) -> str:
    """Returns why a call failed, in one line."""
    status = error.code()
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"no answer within {DEADLINE_SECONDS:.0f} s"
    details = error.details() or ""
    return f"{status.name}: {details}{tls_hint(details)}"
