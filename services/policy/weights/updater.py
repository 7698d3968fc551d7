"""A weight push from its first message to its effect: receive, verify, swap. All or nothing, and one at a time."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from rlhf_services.common.errors import InvalidRequestError, OverloadedError, PreconditionError, ServiceError
from rlhf_services.common.logs import get_logger
from rlhf_services.common.pushes import PushHeader, PushResult
from rlhf_services.policy.config import LimitsConfig
from rlhf_services.policy.engine import Engine
from rlhf_services.policy.metrics import PolicyMetrics
from rlhf_services.policy.weights.stage import WeightStage, check_manifest

T = TypeVar("T")

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PushChunk:
    """A piece of the payload."""

    offset_bytes: int
    data: bytes


@dataclass(frozen=True, slots=True)
class PushCommit:
    """The end of a whole payload."""


PushPart = PushHeader | PushChunk | PushCommit


@dataclass(frozen=True, slots=True)
class ServedWeights:
    """Which weights the engine samples with."""

    policy_version: int
    digest: str


class WeightUpdater:
    """Knows which weights are served, and replaces them."""

    served: ServedWeights

    def __init__(self, engine: Engine, limits: LimitsConfig, metrics: PolicyMetrics) -> None:
        self._engine = engine
        self._limits = limits
        self._metrics = metrics
        self._pushing: int | None = None

    def start(self) -> None:
        """Takes note of the weights that the engine has loaded."""
        self._set_served(ServedWeights(0, self._engine.info.manifest.digest))

    async def push(self, parts: AsyncIterator[PushPart]) -> PushResult:
        """Takes a push: a header, chunks, a commit.

        Raises: InvalidRequestError if any of it is wrong, or missing; OverloadedError while another push is under way;
            the engine's own errors. The weights are unchanged then, unless the engine died of it.
        """
        if self._pushing is not None:
            raise OverloadedError(
                f"a push of policy version {self._pushing} is under way, and there can be one at a time; "
                "retry when it has ended"
            )
        self._pushing = 0
        try:
            return await self._push(parts)
        except ServiceError as error:
            self._metrics.push_failures.labels(error.status.name.lower()).inc()
            raise
        except asyncio.CancelledError:
            self._metrics.push_failures.labels("cancelled").inc()
            raise
        finally:
            self._pushing = None

    async def _push(self, parts: AsyncIterator[PushPart]) -> PushResult:
        started = time.perf_counter()
        header = await self._receive_header(parts)
        if header.policy_version == self.served.policy_version and header.weights_digest == self.served.digest:
            return self._result()
        self._pushing = header.policy_version
        stage = WeightStage(header.manifest)
        try:
            await self._receive_payload(parts, stage)
            self._metrics.push_seconds.labels("stage").observe(time.perf_counter() - started)
            self._metrics.push_seconds.labels("verify").observe(stage.verify_seconds)
            # From here on the caller can leave without leaving the engine in between.
            return await _to_the_end(self._swap(header, stage))
        finally:
            stage.close()

    async def _receive_header(self, parts: AsyncIterator[PushPart]) -> PushHeader:
        header = await self._next(parts)
        if not isinstance(header, PushHeader):
            raise InvalidRequestError("the first part of a push must be its header")
        if header.encoding == "unspecified":
            raise InvalidRequestError("header.encoding is unspecified; send WEIGHTS_ENCODING_FULL")
        if header.encoding == "sparse_patch":
            raise PreconditionError(
                f"header.encoding is WEIGHTS_ENCODING_SPARSE_PATCH (on version {header.base_policy_version}), which "
                f"this server, at version {self.served.policy_version}, does not take; send WEIGHTS_ENCODING_FULL"
            )
        if header.policy_version < 1:
            raise InvalidRequestError(
                f"header.policy_version is {header.policy_version}; it must be at least 1 (0 is what was loaded)"
            )
        check_manifest(header.manifest, self._engine.info.manifest, header.weights_digest)
        return header

    async def _receive_payload(self, parts: AsyncIterator[PushPart], stage: WeightStage) -> None:
        while not isinstance(part := await self._next(parts), PushCommit):
            if isinstance(part, PushHeader):
                raise InvalidRequestError("a second header came where a chunk or the commit was expected")
            if len(part.data) > self._limits.max_chunk_bytes:
                raise InvalidRequestError(
                    f"chunk.data has {len(part.data)} bytes, the limit is {self._limits.max_chunk_bytes}; split it"
                )
            stage.write(part.offset_bytes, part.data)

    async def _next(self, parts: AsyncIterator[PushPart]) -> PushPart:
        try:
            return await asyncio.wait_for(anext(parts), self._limits.push_idle_seconds)
        except StopAsyncIteration:
            raise InvalidRequestError("the stream ended before its commit; nothing was changed: push again") from None
        except TimeoutError:
            raise InvalidRequestError(
                f"nothing came for {self._limits.push_idle_seconds:g} s, so the push was given up and nothing was "
                "changed: push again"
            ) from None

    async def _swap(self, header: PushHeader, stage: WeightStage) -> PushResult:
        staged = stage.commit(header.policy_version)
        pause_seconds = await self._engine.update_weights(staged)
        self._set_served(ServedWeights(header.policy_version, header.weights_digest))
        self._metrics.push_seconds.labels("pause").observe(pause_seconds)
        self._metrics.pushes.inc()
        self._metrics.push_bytes.inc(header.manifest.num_bytes)
        log.info("weights swapped", policy_version=header.policy_version, pause_seconds=round(pause_seconds, 4))
        return self._result(pause_seconds)

    def _result(self, pause_seconds: float = 0.0) -> PushResult:
        return PushResult(
            policy_version=self.served.policy_version,
            weights_digest=self.served.digest,
            pause_seconds=pause_seconds,
        )

    def _set_served(self, served: ServedWeights) -> None:
        self.served = served
        self._metrics.policy_version.set(served.policy_version)


async def _to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Returns what `work` returns; a cancellation of the caller takes effect only when it has ended."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise
