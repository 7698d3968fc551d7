"""The reward client for callers without an event loop: one runs in a thread of its own."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from rlhf.client.reward import RewardClient

P = ParamSpec("P")
T = TypeVar("T")


class LoopThread:
    """Runs coroutines for any thread. The thread ends with close(), or with the process."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Returns what the coroutine returns; an interrupt of the waiting thread cancels it."""
        if problem := self._why_not():
            work.close()
            raise RuntimeError(f"the thread {self._thread.name!r} {problem}")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    @property
    def is_closed(self) -> bool:
        """Whether close() was called."""
        return self._loop.is_closed()

    def close(self) -> None:
        """Cancels what still runs, and returns when the thread has ended. May be called again."""
        if self.is_closed:
            return
        if self._thread.is_alive():
            self.run(_cancel_others())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        self._loop.close()

    def _why_not(self) -> str:
        """Returns why nothing can be run; empty if it can."""
        if not self._thread.is_alive():
            return "has ended: closed, or left behind by a fork"
        if threading.current_thread() is self._thread:
            return "cannot wait for itself: do not call its client from a callback"
        return ""


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


def _waiting(
    method: Callable[Concatenate[RewardClient, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["SyncRewardClient", P], T]:
    """Returns a method of SyncRewardClient that waits for RewardClient's; it has the same arguments and docstring."""

    @wraps(method)
    def wait(self: "SyncRewardClient", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._thread.run(method(self._client, *args, **kwargs))

    return wait


class SyncRewardClient:
    """Scores completions: RewardClient's methods, each of which waits for its answer.

    Use as `with SyncRewardClient("reward:50052") as reward: ...`, or call close(). Several threads may call it at once;
    their calls run side by side. The calls, and score_many's on_progress, run in a thread of its own, which a fork does
    not copy: make the client in the process that uses it.
    """

    def __init__(
        self,
        target: str,
        *,
        token: str | None = None,
        caller: str = "",
        wait_when_overloaded: bool = True,
    ) -> None:
        """Opens a channel; nothing is connected before the first call. The arguments are those of RewardClient."""
        self.target = target
        self._thread = LoopThread("reward-client")

        async def make() -> RewardClient:  # a channel belongs to the loop that is running when it is made
            return RewardClient(target, token=token, caller=caller, wait_when_overloaded=wait_when_overloaded)

        try:
            self._client = self._thread.run(make())
        except BaseException:
            self._thread.close()
            raise

    score = _waiting(RewardClient.score)
    score_many = _waiting(RewardClient.score_many)
    compare = _waiting(RewardClient.compare)
    get_model = _waiting(RewardClient.get_model)
    get_report = _waiting(RewardClient.get_report)
    load_model = _waiting(RewardClient.load_model)
    is_serving = _waiting(RewardClient.is_serving)

    def close(self) -> None:
        """Closes the channel and ends the thread; calls in flight are cancelled. May be called again."""
        if not self._thread.is_closed:
            self._thread.run(self._client.close())
            self._thread.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
