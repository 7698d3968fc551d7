"""A reward service without a model, for clients: it scores text by its length and does on demand what can go wrong."""

import asyncio
from collections import deque
from typing import Any

import grpc

from rlhf.v1 import reward_pb2, reward_pb2_grpc
from tests.support.fake_services import FakeServer


class FakeTextReward(FakeServer, reward_pb2_grpc.RewardServiceServicer):
    """The reward of a completion is its number of characters, or of messages' last."""

    full_name = "rlhf.v1.RewardService"

    def __init__(self, *, max_items: int = 1000) -> None:
        super().__init__()
        self.max_items = max_items
        self.version = "v1"
        self.requests: list[reward_pb2.ScoreRequest] = []
        self.callers: list[str] = []
        self.connections: list[str] = []
        """Address of the other end, of each call."""
        self.arrivals = asyncio.Semaphore(0)
        """Released by each call that arrives."""
        self.refusals: deque[tuple[grpc.StatusCode, str]] = deque()
        """Status and retry-after-ms ("" for none) of the next calls; those after them are answered."""
        self.holds: deque[asyncio.Event] = deque()
        """What the next calls wait for, one each."""
        self.cancelled = asyncio.Event()
        """Set when a call was cancelled while it waited."""
        self.item_errors: dict[str, deque[str]] = {}
        """Codes of the errors that a completion gets before it gets its reward."""
        self.components = False

    def add_to(self, server: grpc.aio.Server) -> None:
        reward_pb2_grpc.add_RewardServiceServicer_to_server(self, server)

    @property
    def sizes(self) -> list[int]:
        """How many items each call had."""
        return [len(request.items) for request in self.requests]

    async def Score(self, request: Any, context: Any) -> reward_pb2.ScoreResponse:
        self.requests.append(request)
        self.connections.append(context.peer())
        self.arrivals.release()
        self.callers.append(dict(context.invocation_metadata()).get("x-rlhf-caller", ""))
        if self.refusals:
            status, hint = self.refusals.popleft()
            await context.abort(status, "refused by the fake", (("retry-after-ms", hint),) if hint else ())
        if self.holds:
            try:
                await self.holds.popleft().wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        version = self.version
        return reward_pb2.ScoreResponse(results=[self._result(item) for item in request.items], model_version=version)

    async def Compare(self, request: Any, context: Any) -> reward_pb2.CompareResponse:
        return reward_pb2.CompareResponse(
            results=[
                reward_pb2.ComparisonResult(
                    item_id=item.item_id,
                    comparison=reward_pb2.Comparison(probability=0.75, first_reward=2, second_reward=1),
                )
                if item.first.text.completion
                else reward_pb2.ComparisonResult(
                    item_id=item.item_id, error=reward_pb2.ScoreError(code=1, message="first: empty")
                )
                for item in request.items
            ],
            model_version=self.version,
        )

    async def GetModel(self, request: Any, context: Any) -> reward_pb2.RewardServiceGetModelResponse:
        return reward_pb2.RewardServiceGetModelResponse(model_version=self.version, max_items=self.max_items)

    async def LoadModel(self, request: Any, context: Any) -> reward_pb2.LoadModelResponse:
        before, self.version = self.version, request.model_paths[0]
        return reward_pb2.LoadModelResponse(model_version=self.version, previous_model_version=before, load_seconds=0.5)

    async def GetReport(self, request: Any, context: Any) -> reward_pb2.GetReportResponse:
        report = reward_pb2.RewardReport(
            model_version=self.version, caller="me", item_count=3, reward_mean=1.5, drift=0.25, warnings=["odd"]
        )
        return reward_pb2.GetReportResponse(reports=[report])

    def _result(self, item: Any) -> reward_pb2.ScoreResult:
        completion = item.conversation.messages[-1].content if item.HasField("conversation") else item.text.completion
        codes = self.item_errors.get(completion)
        if codes:
            code = reward_pb2.ScoreErrorCode.Value(f"SCORE_ERROR_CODE_{codes.popleft()}")
            return reward_pb2.ScoreResult(
                item_id=item.item_id, error=reward_pb2.ScoreError(code=code, message="refused by the fake")
            )
        result = reward_pb2.ScoreResult(item_id=item.item_id, reward=len(completion))
        if self.components:
            result.components.add(name="length", weight=1.0, reward=len(completion), spread=0.5)
        return result
