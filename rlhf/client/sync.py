"""The reward client for callers without an event loop: one runs in a thread of its own."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Self, TypeVar

from rlhf.client.reward import RewardClient
from rlhf.client.reward_types import (
    ComparisonBatch,
    ComparisonItem,
    LoadedModel,
    ManyScores,
    RewardModel,
    RewardReport,
    ScoreBatch,
    ScoreItem,
)

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


class SyncRewardClient:
    """Scores completions: RewardClient's methods, each of which waits for its answer.

    Use as `with SyncRewardClient("reward:50052") as reward: ...`, or call close(). Several threads may call it at once;
    their calls run side by side. The calls run in a thread of its own, which a fork does not copy: make the client in
    the process that uses it.
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

    def score(
        self,
        items: Sequence[ScoreItem],
        *,
        tokenizer_digest: str = "",
        request_id: str | None = None,
        deadline_seconds: float = 60.0,
    ) -> ScoreBatch:
        """Returns a reward or an error for each item, as RewardClient.score."""
        return self._run(
            self._client.score(
                items, tokenizer_digest=tokenizer_digest, request_id=request_id, deadline_seconds=deadline_seconds
            )
        )

    def score_many(
        self,
        items: Sequence[ScoreItem],
        *,
        batch_items: int = 256,
        max_concurrent_calls: int = 4,
        tokenizer_digest: str = "",
        deadline_seconds: float = 60.0,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> ManyScores:
        """Returns the results of any number of items, as RewardClient.score_many; on_progress is called in the
        client's own thread.
        """
        return self._run(
            self._client.score_many(
                items,
                batch_items=batch_items,
                max_concurrent_calls=max_concurrent_calls,
                tokenizer_digest=tokenizer_digest,
                deadline_seconds=deadline_seconds,
                on_progress=on_progress,
            )
        )

    def compare(
        self,
        items: Sequence[ComparisonItem],
        *,
        tokenizer_digest: str = "",
        request_id: str | None = None,
        deadline_seconds: float = 60.0,
    ) -> ComparisonBatch:
        """Returns how probable it is of each pair that the first is the better one, as RewardClient.compare."""
        return self._run(
            self._client.compare(
                items, tokenizer_digest=tokenizer_digest, request_id=request_id, deadline_seconds=deadline_seconds
            )
        )

    def get_model(self, deadline_seconds: float = 10.0) -> RewardModel:
        """Returns what is being served."""
        return self._run(self._client.get_model(deadline_seconds))

    def get_report(self, deadline_seconds: float = 10.0) -> list[RewardReport]:
        """Returns how rewards have developed, as RewardClient.get_report."""
        return self._run(self._client.get_report(deadline_seconds))

    def load_model(
        self, model_paths: Sequence[str], *, component: str = "", deadline_seconds: float = 600.0
    ) -> LoadedModel:
        """Returns when other weights are served, as RewardClient.load_model."""
        return self._run(self._client.load_model(model_paths, component=component, deadline_seconds=deadline_seconds))

    def is_serving(self, deadline_seconds: float = 5.0) -> bool:
        """Returns whether the service answers and says that it can serve."""
        return self._run(self._client.is_serving(deadline_seconds))

    def close(self) -> None:
        """Closes the channel and ends the thread; calls in flight are cancelled. May be called again."""
        if not self._thread.is_closed:
            self._run(self._client.close())
            self._thread.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        return self._thread.run(call)
