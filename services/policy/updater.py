"""Takes weight pushes: checks each one while it arrives, has the engine swap, and knows which weights are served."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rlhf.client.tasks import to_the_end
from rlhf.errors import InvalidRequestError, OverloadedError, PreconditionError, ServiceError
from rlhf.logs import get_logger
from rlhf.weights import PushHeader, PushResult
from services.policy.config import LimitsConfig
from services.policy.engine import Engine
from services.policy.metrics import PolicyMetrics
from services.policy.weights.full import FullPayload
from services.policy.weights.payload_writer import PayloadWriter
from services.policy.weights.relay import Relay
from services.policy.weights.served_copy import ServedCopy, check_manifest
from services.policy.weights.staged import StagedPatch, StagedWeights

if TYPE_CHECKING:
    from services.policy.weights.patch import PatchPayload


@dataclass(frozen=True, slots=True)
class PushChunk:
    """A piece of the payload."""

    offset_bytes: int
    data: bytes | memoryview


@dataclass(frozen=True, slots=True)
class PushCommit:
    """The end of a whole payload."""


PushPart = PushHeader | PushChunk | PushCommit


class PushStream:
    """One push under way."""

    def __init__(self, parts: AsyncIterator[PushPart], idle_seconds: float) -> None:
        """Args: its parts; how long it may send nothing."""
        self.policy_version = 0
        """As soon as that is known."""
        self.ended = asyncio.Event()
        self._parts = parts
        self._idle_seconds = idle_seconds
        self._timeout: asyncio.Timeout | None = None
        self._silent_since = 0.0
        self._given_up = False

    async def next(self) -> PushPart:
        """Returns the next part. Raises: InvalidRequestError if none comes; OverloadedError if it was given up."""
        try:
            async with asyncio.timeout(self._idle_seconds) as self._timeout:
                self._silent_since = asyncio.get_running_loop().time()
                return await anext(self._parts)
        except StopAsyncIteration:
            raise InvalidRequestError("the stream ended before its commit; nothing was changed: push again") from None
        except TimeoutError:
            if self._given_up:
                raise OverloadedError(
                    "the push had fallen silent when another one came, so it was given up and nothing was changed: "
                    "push again"
                ) from None
            raise InvalidRequestError(
                f"nothing came for {self._idle_seconds:g} s, so the push was given up and nothing was changed: "
                "push again"
            ) from None
        finally:
            self._timeout = None

    def give_up_if_silent(self, seconds: float) -> bool:
        """Gives the push up if it has sent nothing for so long while it was waited for; returns whether it ends now."""
        if self._timeout is not None and not self._given_up:
            now = asyncio.get_running_loop().time()
            if now - self._silent_since >= seconds:
                self._given_up = True
                self._timeout.reschedule(now)
        return self._given_up


log = get_logger(__name__)


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
        self._copy = ServedCopy(takes_patches=limits.takes_patches)
        self._current: PushStream | None = None

    @property
    def takes_patches(self) -> bool:
        """Whether a patch of the served weights would be taken."""
        return self._copy.takes_patches

    def start(self) -> None:
        """Takes note of the weights that the engine has loaded, and takes over their copy."""
        self._copy.load(self._engine.info.copy)
        self._set_served(ServedWeights(0, self._engine.info.manifest.digest))

    def close(self) -> None:
        """Frees the memory. No push may be under way."""
        self._copy.close()

    async def push(self, parts: AsyncIterator[PushPart], deadline_seconds: float | None = None) -> PushResult:
        """Takes a push: a header, chunks, a commit.

        Args:
            parts: in the order in which they come.
            deadline_seconds: how long the call may take; None if it has no deadline.
        Raises: InvalidRequestError if any of it is wrong, or missing; PreconditionError for a patch of other weights;
            OverloadedError while another push is under way that has not fallen silent; the engine's own errors. The
            weights are unchanged then, unless the engine died of it.
        """
        try:
            await self._make_room()
            stream = self._current = PushStream(parts, self._limits.push_idle_seconds)
            try:
                return await self._push(stream, deadline_seconds)
            finally:
                self._current = None
                stream.ended.set()
        except ServiceError as error:
            self._metrics.push_failures.labels(error.status.lower()).inc()
            raise
        except asyncio.CancelledError:
            self._metrics.push_failures.labels("cancelled").inc()
            raise

    async def _make_room(self) -> None:
        """Returns when no push is under way. Raises OverloadedError if one is that has not fallen silent."""
        while (current := self._current) is not None:
            if not current.give_up_if_silent(self._limits.push_silence_seconds):
                raise OverloadedError(
                    f"a push of policy version {current.policy_version} is under way, and there can be one at a time; "
                    "retry when it has ended"
                )
            await current.ended.wait()

    async def _push(self, stream: PushStream, deadline_seconds: float | None) -> PushResult:
        started = time.perf_counter()
        header = await self._receive_header(stream)
        if header.policy_version == self.served.policy_version and header.weights_digest == self.served.digest:
            return self._result()
        self._check_base(header)
        stream.policy_version = header.policy_version
        payload = self._copy.begin(header)
        writer = PayloadWriter(payload)
        relay = Relay(
            header,
            writer,
            patience_seconds=self._limits.relay_patience_seconds,
            deadline_seconds=deadline_seconds,
        )
        try:
            relay.start()
            await self._receive_payload(stream, writer)
            # From here on the caller can leave without leaving the engine in between.
            result = await to_the_end(self._swap(header, payload, relay, started))
            return replace(result, relayed=await relay.result())
        finally:
            await to_the_end(self._end(payload, writer, relay))

    async def _receive_header(self, stream: PushStream) -> PushHeader:
        header = await stream.next()
        if not isinstance(header, PushHeader):
            raise InvalidRequestError("the first part of a push must be its header")
        if header.encoding == "unspecified":
            raise InvalidRequestError("header.encoding is unspecified; send WEIGHTS_ENCODING_FULL")
        if header.policy_version < 1:
            raise InvalidRequestError(
                f"header.policy_version is {header.policy_version}; it must be at least 1 (0 is what was loaded)"
            )
        check_manifest(header.manifest, self._engine.info.manifest, header.weights_digest)
        return header

    def _check_base(self, header: PushHeader) -> None:
        """Raises PreconditionError if the push is a patch of other weights than those served."""
        base = ServedWeights(header.base_policy_version, header.base_weights_digest)
        if header.encoding == "sparse_patch" and base != self.served:
            raise PreconditionError(
                f"the patch is one of version {base.policy_version} with digest '{base.digest}'; this server is at "
                f"version {self.served.policy_version} with digest '{self.served.digest}': send WEIGHTS_ENCODING_FULL"
            )

    async def _receive_payload(self, stream: PushStream, writer: PayloadWriter) -> None:
        while not isinstance(part := await stream.next(), PushCommit):
            if isinstance(part, PushHeader):
                raise InvalidRequestError("a second header came where a chunk or the commit was expected")
            if len(part.data) > self._limits.max_chunk_bytes:
                raise InvalidRequestError(
                    f"chunk.data has {len(part.data)} bytes, the limit is {self._limits.max_chunk_bytes}; split it"
                )
            await writer.take(part.offset_bytes, part.data)
        await writer.flush()

    async def _swap(
        self, header: PushHeader, payload: "FullPayload | PatchPayload", relay: Relay, started: float
    ) -> PushResult:
        commit: Callable[[int], StagedWeights | StagedPatch] = payload.commit
        staged = await asyncio.to_thread(commit, header.policy_version)
        stage_seconds = time.perf_counter() - started
        relay.commit()
        pause_seconds = await self._engine.update_weights(staged)
        self._copy.accept(payload)
        self._set_served(ServedWeights(header.policy_version, header.weights_digest))
        self._record(header, payload, stage_seconds, pause_seconds)
        return self._result(pause_seconds, stage_seconds)

    async def _end(self, payload: "FullPayload | PatchPayload", writer: PayloadWriter, relay: Relay) -> None:
        """Ends everything that still works on the push; what a failed one has changed is taken back."""
        await relay.cancel()
        await writer.end()
        await asyncio.to_thread(self._copy.end, payload)

    def _record(
        self, header: PushHeader, payload: "FullPayload | PatchPayload", stage_seconds: float, pause_seconds: float
    ) -> None:
        metrics = self._metrics
        metrics.push_seconds.labels("stage").observe(stage_seconds)
        metrics.push_seconds.labels("verify").observe(payload.verify_seconds)
        metrics.push_seconds.labels("pause").observe(pause_seconds)
        metrics.pushes.labels(header.encoding).inc()
        metrics.push_bytes.labels(header.encoding).inc(header.payload_bytes)
        metrics.push_changed_fraction.set(1.0 if isinstance(payload, FullPayload) else payload.changed_fraction)
        log.info(
            "weights swapped",
            policy_version=header.policy_version,
            encoding=header.encoding,
            num_bytes=header.payload_bytes,
            stage_seconds=round(stage_seconds, 4),
            pause_seconds=round(pause_seconds, 4),
        )

    def _result(self, pause_seconds: float = 0.0, stage_seconds: float = 0.0) -> PushResult:
        return PushResult(
            policy_version=self.served.policy_version,
            weights_digest=self.served.digest,
            pause_seconds=pause_seconds,
            stage_seconds=stage_seconds,
        )

    def _set_served(self, served: ServedWeights) -> None:
        self.served = served
        self._metrics.policy_version.set(served.policy_version)
