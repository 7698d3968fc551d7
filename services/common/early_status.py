"""The status of a streaming call that the server ends before it has all messages.

grpc.aio reports INTERNAL, "Internal error from Core", instead of what the server said, if a message that it is sending
at that moment fails after the status has come (https://github.com/grpc/grpc/issues/36066): in two of five early
refusals on one machine. The status was there before, and whoever asked for it then has it.
"""

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import grpc

T = TypeVar("T")


def keep_early_status(call: Any) -> Callable[[grpc.aio.AioRpcError], grpc.aio.AioRpcError]:
    """Returns what turns the error of a call into the one that the server answered with. Use it as the call begins.

    Args: call: a call of grpc.aio whose requests are a stream.
    """
    kept: list[grpc.aio.AioRpcError] = []

    def keep(ended: Any) -> None:
        code, details = _now(ended.code()), _now(ended.details())
        if code not in (grpc.StatusCode.OK, grpc.StatusCode.INTERNAL):
            kept.append(
                grpc.aio.AioRpcError(
                    code,
                    _now(ended.initial_metadata()),
                    _now(ended.trailing_metadata()),
                    details=details,
                )
            )

    def truth(error: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
        return kept[0] if kept and error.code() is grpc.StatusCode.INTERNAL else error

    call.add_done_callback(keep)
    return truth


def _now(asking: Coroutine[Any, Any, T]) -> T:
    """Returns what a call that has ended knows at once; later might be too late."""
    try:
        asking.send(None)
    except StopIteration as answer:
        value: T = answer.value
        return value
    finally:
        asking.close()
    raise RuntimeError("a call that has ended did not know its status")
