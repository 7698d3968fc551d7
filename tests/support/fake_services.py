"""Policy, reward and reference services without models, on real sockets; they break the contract on demand."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, Self

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from rlhf.client.codec import decode_header, decode_prompt, encode_rollout
from rlhf.rollout import Rollout
from rlhf.v1 import policy_pb2, policy_pb2_grpc, reference_pb2, reference_pb2_grpc, reward_pb2, reward_pb2_grpc

TOKENIZER = "tokenizer-of-the-fakes"
REFERENCE_VERSION = "reference-of-the-fakes"


class FakeServer:
    """One fake service. Stopping it kills its calls; starting it again takes the same port."""

    full_name: str

    def __init__(self) -> None:
        self.port = 0
        self.runs = asyncio.Event()
        """While it is cleared the server is like a stopped process: connections stay, and nothing is answered."""
        self.runs.set()
        self._server: grpc.aio.Server | None = None

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    def add_to(self, server: grpc.aio.Server) -> None:
        raise NotImplementedError

    async def start(self) -> None:
        self._server = grpc.aio.server()
        states = _Health(self.runs)
        await states.set(self.full_name, health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(states, self._server)
        self.add_to(self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()

    async def kill(self) -> None:
        if self._server is not None:
            await self._server.stop(None)
            self._server = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.kill()


class _Health(health.aio.HealthServicer):
    """Answers while the server runs."""

    def __init__(self, runs: asyncio.Event) -> None:
        super().__init__()
        self._runs = runs

    async def Check(self, request: Any, context: Any) -> health_pb2.HealthCheckResponse:
        await self._runs.wait()
        return await super().Check(request, context)


class FakePolicy(FakeServer, policy_pb2_grpc.PolicyServiceServicer):
    """Answers every prompt with its seed's digits: completion i of seed s is [1 + s % 7 + i, 2]."""

    full_name = "rlhf.v1.PolicyService"

    def __init__(self, *, tokenizer: str = TOKENIZER, max_prompts: int = 1000, dtype: str = "F32") -> None:
        super().__init__()
        self.tokenizer, self.max_prompts, self.dtype = tokenizer, max_prompts, dtype
        self.max_sequences = 1000
        self.version, self.digest = 0, ""
        self.asked = asyncio.Event()
        self.requests: list[policy_pb2.GenerateRequest] = []
        self.pushed_versions: list[int] = []
        self.refusals = 0
        """Calls of Generate that are refused for want of room, from now on."""
        self.break_after: int | None = None
        """Rollouts after which the next call dies, once."""
        self.hold_after_first: asyncio.Event | None = None
        """The stream waits for it after its first rollout, if set."""
        self.sampled_version: int | None = None
        """What rollouts claim to be sampled by, if not the version."""
        self.logprob = -1.0
        self.takes_patches = False
        self.pushes: list[str] = []
        """The encodings of the pushes that it took."""
        self.arriving = asyncio.Event()
        """Set when a push has begun."""
        self.hold_push: asyncio.Event | None = None
        """A push waits for it before it takes effect, if set."""
        self.refusal: tuple[grpc.StatusCode, str] | None = None
        """How it refuses pushes, if set."""

    def restart(self) -> None:
        """Makes its weights those of a fresh process."""
        self.version, self.digest = 0, ""

    def add_to(self, server: grpc.aio.Server) -> None:
        policy_pb2_grpc.add_PolicyServiceServicer_to_server(self, server)

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[policy_pb2.GenerateResponse]:
        self.requests.append(request)
        self.asked.set()
        await self.runs.wait()
        if self.version < request.min_policy_version:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"the weights are version {self.version}")
        if self.refusals:
            self.refusals -= 1
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too much in flight")
        num_sent = 0
        for message in reversed(request.prompts):  # not in the order of asking
            prompt = decode_prompt(message)
            for index in range(request.sampling.completions_per_prompt or 1):
                if self.break_after is not None and num_sent >= self.break_after:
                    self.break_after = None
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "the engine died")
                version = self.version if self.sampled_version is None else self.sampled_version
                rollout = Rollout(
                    rollout_id=f"{prompt.group_id}/{index}",
                    group_id=prompt.group_id,
                    prompt_ids=prompt.prompt_ids,
                    completion_ids=[1 + (prompt.seed or 0) % 7 + index, 2],
                    logprobs=[self.logprob, -0.5],
                    policy_versions=[version, version],
                    finish_reason="stop",
                )
                yield policy_pb2.GenerateResponse(rollout=encode_rollout(rollout))
                num_sent += 1
                if self.hold_after_first is not None:
                    await self.hold_after_first.wait()

    async def UpdateWeights(self, request_iterator: Any, context: Any) -> policy_pb2.UpdateWeightsResponse:
        requests = []
        async for request in request_iterator:
            requests.append(request)
            self.arriving.set()
        header = requests[0].header
        if self.hold_push is not None:
            await self.hold_push.wait()
        await self.runs.wait()
        if self.refusal is not None:
            await context.abort(*self.refusal)
        is_patch = header.encoding == policy_pb2.WEIGHTS_ENCODING_SPARSE_PATCH
        if is_patch and (header.base_policy_version, header.base_weights_digest) != (self.version, self.digest):
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"the weights are version {self.version}")
        assert sum(len(request.chunk.data) for request in requests) == decode_header(header).payload_bytes
        self.version, self.digest = header.policy_version, header.weights_digest
        self.pushed_versions.append(self.version)
        self.pushes.append("patch" if is_patch else "full")
        return policy_pb2.UpdateWeightsResponse(
            policy_version=self.version,
            weights_digest=self.digest,
            pause_seconds=0.25,
            relayed=await _relay(requests, list(header.relay_targets)),
        )

    async def GetModel(self, request: Any, context: Any) -> policy_pb2.PolicyServiceGetModelResponse:
        await self.runs.wait()
        encodings = [policy_pb2.WEIGHTS_ENCODING_FULL]
        if self.takes_patches:
            encodings.append(policy_pb2.WEIGHTS_ENCODING_SPARSE_PATCH)
        return policy_pb2.PolicyServiceGetModelResponse(
            tokenizer_digest=self.tokenizer,
            policy_version=self.version,
            weights_digest=self.digest,
            dtype=self.dtype,
            max_prompts=self.max_prompts,
            max_sequences=self.max_sequences,
            encodings=encodings,
        )


async def _relay(requests: list[Any], targets: list[str]) -> list[policy_pb2.RelayedPush]:
    """Relays a push to the first of the targets that takes it, with the rest for that one's own."""
    failed = []
    while targets:
        target, *targets = targets
        header = policy_pb2.WeightsHeader()
        header.CopyFrom(requests[0].header)
        header.relay_targets[:] = targets
        async with grpc.aio.insecure_channel(target) as channel:
            push = policy_pb2_grpc.PolicyServiceStub(channel).UpdateWeights
            try:
                answer = await push(iter([policy_pb2.UpdateWeightsRequest(header=header), *requests[1:]]))
            except grpc.aio.AioRpcError as error:
                failed.append(policy_pb2.RelayedPush(target=target, error=error.details()))
                continue
        taken = policy_pb2.RelayedPush(
            target=target,
            policy_version=answer.policy_version,
            weights_digest=answer.weights_digest,
            pause_seconds=answer.pause_seconds,
        )
        return [*failed, taken, *answer.relayed]
    return failed


class FakeReward(FakeServer, reward_pb2_grpc.RewardServiceServicer):
    """Scores a completion by its first token id, or as `outcome` says: a number, or the code of an error."""

    full_name = "rlhf.v1.RewardService"

    def __init__(self, *, tokenizer: str = TOKENIZER) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.outcome: Callable[[list[int]], float | str] = lambda completion_ids: float(completion_ids[0])
        self.spread: Callable[[list[int]], float | None] = lambda completion_ids: None
        """What it says of its members' disagreement; None is a single scorer."""
        self.scored = 0
        self.arrived = asyncio.Event()
        self.hold: asyncio.Event | None = None
        """Calls wait for it, if set."""

    def add_to(self, server: grpc.aio.Server) -> None:
        reward_pb2_grpc.add_RewardServiceServicer_to_server(self, server)

    async def Score(self, request: Any, context: Any) -> reward_pb2.ScoreResponse:
        self.arrived.set()
        if self.hold is not None:
            await self.hold.wait()
        results = []
        for item in request.items:
            completion_ids = list(item.tokens.completion_ids)
            outcome = self.outcome(completion_ids)
            if isinstance(outcome, str):
                code = reward_pb2.ScoreErrorCode.Value(f"SCORE_ERROR_CODE_{outcome}")
                error = reward_pb2.ScoreError(code=code, message="refused by the fake")
                results.append(reward_pb2.ScoreResult(item_id=item.item_id, error=error))
            else:
                spread = self.spread(completion_ids)
                results.append(reward_pb2.ScoreResult(item_id=item.item_id, reward=outcome, spread=spread))
            self.scored += 1
        return reward_pb2.ScoreResponse(results=results, model_version="fake")

    async def GetModel(self, request: Any, context: Any) -> reward_pb2.RewardServiceGetModelResponse:
        return reward_pb2.RewardServiceGetModelResponse(tokenizer_digest=self.tokenizer, model_version="fake")


class FakeReference(FakeServer, reference_pb2_grpc.ReferenceServiceServicer):
    """Gives every token the log-probability -2, or what `logprobs` returns."""

    full_name = "rlhf.v1.ReferenceService"

    def __init__(self, *, tokenizer: str = TOKENIZER, version: str = REFERENCE_VERSION) -> None:
        super().__init__()
        self.tokenizer, self.version = tokenizer, version
        self.logprobs: Callable[[list[int]], list[float]] = lambda completion_ids: [-2.0] * len(completion_ids)
        self.temperatures: set[float] = set()

    def add_to(self, server: grpc.aio.Server) -> None:
        reference_pb2_grpc.add_ReferenceServiceServicer_to_server(self, server)

    async def ComputeLogprobs(self, request: Any, context: Any) -> reference_pb2.ComputeLogprobsResponse:
        self.temperatures.add(round(request.temperature, 6))
        results = [
            reference_pb2.ComputeLogprobsResult(logprobs=self.logprobs(list(item.completion_ids)))
            for item in request.items
        ]
        return reference_pb2.ComputeLogprobsResponse(results=results, reference_version=self.version)

    async def GetModel(self, request: Any, context: Any) -> reference_pb2.ReferenceServiceGetModelResponse:
        return reference_pb2.ReferenceServiceGetModelResponse(
            tokenizer_digest=self.tokenizer, reference_version=self.version
        )
