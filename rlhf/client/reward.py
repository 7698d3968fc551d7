"""Client of the reward service: scores, comparisons, the model and its reports; long lists in several calls."""

import asyncio
import uuid
from collections import defaultdict, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import TypeVar

from google.protobuf.message import Message

from rlhf.client.base import ServiceClient
from rlhf.client.codec import from_message
from rlhf.client.patience import Patience, wait_out_overload
from rlhf.client.reward_types import (
    ComparisonBatch,
    ComparisonItem,
    LoadedModel,
    ManyScores,
    Reward,
    RewardError,
    RewardModel,
    RewardReport,
    ScoreBatch,
    ScoreItem,
    decode_comparison,
    decode_score,
    encode_comparison,
)
from rlhf.errors import InternalError, NotReadyError
from rlhf.v1 import reward_pb2, reward_pb2_grpc

Item = TypeVar("Item")
Result = TypeVar("Result")


async def in_batches(
    items: Sequence[Item],
    size: int,
    work: Callable[[Sequence[Item]], Awaitable[Result]],
    max_concurrent: int,
) -> AsyncGenerator[Result, None]:
    """Yields work's result for each `size` items, in their order; what is in flight is cancelled if one fails.

    A slow first batch holds back those after it, so no more than max_concurrent results wait in memory.
    """
    if size < 1 or max_concurrent < 1:
        raise ValueError(f"batches of {size} items, {max_concurrent} at once; give at least 1 of each")
    starts = iter(range(0, len(items), size))
    running: deque[asyncio.Future[Result]] = deque()
    try:
        while True:
            while len(running) < max_concurrent and (start := next(starts, None)) is not None:
                running.append(asyncio.ensure_future(work(items[start : start + size])))
            if not running:
                return
            result = await running[0]
            running.popleft()
            yield result
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


T = TypeVar("T")

Method = Callable[[reward_pb2_grpc.RewardServiceStub], Callable[..., Awaitable[T]]]
"""Picks a method of a stub."""


class RewardClient(ServiceClient):
    """Scores completions. For the calls of one event loop; SyncRewardClient is for threads.

    Calls that only ask are repeated within their deadline: up to three times while the service is UNAVAILABLE, and for
    as long as it is overloaded and says when to come back. A repeated call has the same request_id, so that the service
    computes and counts it once.
    """

    service = "reward service"
    full_name = "rlhf.v1.RewardService"
    retried_methods = ("Score", "Compare", "GetModel", "GetReport")

    def __init__(
        self,
        target: str,
        *,
        token: str | None = None,
        caller: str = "",
        wait_when_overloaded: bool = True,
    ) -> None:
        """Opens a channel; nothing is connected before the first call.

        Args:
            target, token, caller: as for ServiceClient.
            wait_when_overloaded: whether to come back when the service asks for it; OverloadedError at once if not, or
                if that would be after the deadline.
        """
        super().__init__(target, token=token, caller=caller)
        self._stub = reward_pb2_grpc.RewardServiceStub(self._channel)
        self._wait_when_overloaded = wait_when_overloaded

    async def score(
        self,
        items: Sequence[ScoreItem],
        *,
        tokenizer_digest: str = "",
        request_id: str | None = None,
        deadline_seconds: float = 60.0,
    ) -> ScoreBatch:
        """Returns a reward or an error for each item.

        Args:
            items: at least one, at most RewardModel.max_items; score_many takes more.
            tokenizer_digest: of the tokenizer that made the ids; the service refuses another than its own. "": any.
            request_id: two calls with the same id and items get the same answer. None: a new one.
            deadline_seconds: for all tries together.
        Raises: ServiceError if the batch as a whole was not scored.
        """
        request = reward_pb2.ScoreRequest(
            request_id=request_id or uuid.uuid4().hex,
            items=[item.message for item in items],
            tokenizer_digest=tokenizer_digest,
        )
        response = await self._ask(lambda stub: stub.Score, request, deadline_seconds)
        self._require_count(len(response.results), len(items))
        return ScoreBatch([decode_score(result) for result in response.results], response.model_version)

    async def score_patiently(
        self, items: Sequence[ScoreItem], patience: Patience, *, tokenizer_digest: str = ""
    ) -> list[Reward | RewardError]:
        """Returns a reward for each item, or an error that asking again would not mend; waits for what is away.

        Args: items, tokenizer_digest: as for score.
        Raises: NotReadyError when the patience is spent; other ServiceErrors as score does.
        """
        outcomes: dict[int, Reward | RewardError] = {}
        wanted = list(range(len(items)))
        codes: dict[int, list[str]] = defaultdict(list)
        # The same for all tries whose answer was lost, so that they are computed and counted once.
        request_id = uuid.uuid4().hex

        def may_pass(place: int) -> bool:
            outcome = outcomes[place]
            if not isinstance(outcome, RewardError) or not outcome.is_retryable:
                return False
            codes[place].append(outcome.code)
            return patience.may_pass(codes[place])

        async def ask() -> None:
            nonlocal wanted, request_id
            batch = await self.score(
                [items[place] for place in wanted],
                tokenizer_digest=tokenizer_digest,
                request_id=request_id,
                deadline_seconds=patience.deadline_seconds,
            )
            request_id = uuid.uuid4().hex  # the service would repeat its answer to the old one
            outcomes.update(zip(wanted, batch.results, strict=True))
            wanted = [place for place in wanted if may_pass(place)]
            if wanted and isinstance(error := outcomes[wanted[0]], RewardError):
                raise NotReadyError(f"{self.name}: {error.message}")

        if items:
            await patience.ask(self, ask)
        return [outcomes[place] for place in range(len(items))]

    async def score_batches(
        self,
        items: Sequence[ScoreItem],
        *,
        batch_items: int = 256,
        max_concurrent_calls: int = 4,
        tokenizer_digest: str = "",
        deadline_seconds: float = 60.0,
    ) -> AsyncGenerator[ScoreBatch, None]:
        """Yields the results of any number of items, in their order, a call's worth at a time.

        Args:
            batch_items: most items in one call; the service's own limit if that is lower.
            max_concurrent_calls: calls in flight at once.
            tokenizer_digest, deadline_seconds: of each call, as for score.
        Raises: ServiceError of the first call that fails; what was yielded before is good.
        """

        async def score(batch: Sequence[ScoreItem]) -> ScoreBatch:
            return await self.score(batch, tokenizer_digest=tokenizer_digest, deadline_seconds=deadline_seconds)

        if not items:
            return
        limit = (await self.get_model()).max_items
        size = min(batch_items, limit) if limit > 0 else batch_items
        async with aclosing(in_batches(items, size, score, max_concurrent_calls)) as batches:
            async for batch in batches:
                yield batch

    async def score_many(
        self,
        items: Sequence[ScoreItem],
        *,
        batch_items: int = 256,
        max_concurrent_calls: int = 4,
        tokenizer_digest: str = "",
        deadline_seconds: float = 60.0,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> ManyScores:
        """Returns the results of any number of items, in their order; the arguments are those of score_batches.

        Args:
            on_progress: told how many items are done, and of how many, after each call.
        Raises: ServiceError if a call fails.
        """
        results: list[Reward | RewardError] = []
        versions: dict[str, None] = {}
        batches = self.score_batches(
            items,
            batch_items=batch_items,
            max_concurrent_calls=max_concurrent_calls,
            tokenizer_digest=tokenizer_digest,
            deadline_seconds=deadline_seconds,
        )
        async with aclosing(batches):
            async for batch in batches:
                results += batch.results
                versions[batch.model_version] = None
                if on_progress is not None:
                    on_progress(len(results), len(items))
        return ManyScores(results, tuple(versions))

    async def compare(
        self,
        items: Sequence[ComparisonItem],
        *,
        tokenizer_digest: str = "",
        request_id: str | None = None,
        deadline_seconds: float = 60.0,
    ) -> ComparisonBatch:
        """Returns for each pair the probability that the first is the better one, or an error; as score otherwise.

        Args:
            items: at least one, at most half of RewardModel.max_items.
        """
        request = reward_pb2.CompareRequest(
            request_id=request_id or uuid.uuid4().hex,
            items=[encode_comparison(item) for item in items],
            tokenizer_digest=tokenizer_digest,
        )
        response = await self._ask(lambda stub: stub.Compare, request, deadline_seconds)
        self._require_count(len(response.results), len(items))
        return ComparisonBatch([decode_comparison(result) for result in response.results], response.model_version)

    async def get_model(self, deadline_seconds: float = 10.0) -> RewardModel:
        """Returns what is being served."""
        request = reward_pb2.RewardServiceGetModelRequest()
        response = await self._ask(lambda stub: stub.GetModel, request, deadline_seconds)
        return from_message(RewardModel, response)

    async def get_report(self, deadline_seconds: float = 10.0) -> list[RewardReport]:
        """Returns how rewards have developed, by model version and caller, newest version first."""
        request = reward_pb2.GetReportRequest()
        response = await self._ask(lambda stub: stub.GetReport, request, deadline_seconds)
        return [from_message(RewardReport, report) for report in response.reports]

    async def load_model(
        self, model_paths: Sequence[str], *, component: str = "", deadline_seconds: float = 600.0
    ) -> LoadedModel:
        """Returns when other weights are served. Not repeated by itself; needs the scope "admin".

        Args:
            model_paths: folders on the service's machine; one for each member of an ensemble.
            component: the part of a weighted sum that gets them; "" if the reward is no sum.
        Raises: ServiceError; the previous model is then still served, unless the deadline passed: ask get_model.
        """
        request = reward_pb2.LoadModelRequest(request_id=uuid.uuid4().hex, model_paths=model_paths, component=component)
        return from_message(LoadedModel, await self._call(self._stub.LoadModel(request, timeout=deadline_seconds)))

    async def _ask(self, method: Method[T], request: Message, deadline_seconds: float) -> T:
        """Makes a call without side effects."""

        def call(timeout: float) -> Awaitable[T]:
            return self._call(method(self._stub)(request, timeout=timeout))

        return await (
            wait_out_overload(call, deadline_seconds) if self._wait_when_overloaded else call(deadline_seconds)
        )

    def _require_count(self, num_results: int, num_items: int) -> None:
        if num_results != num_items:
            raise InternalError(f"{self.name} sent {num_results} results for {num_items} items")
