"""The reference service between wire and model: checks completions, batches them, counts, and answers each once."""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import REGISTRY, CollectorRegistry, Counter

from rlhf.errors import InternalError, InvalidRequestError, NotReadyError, ServiceError
from rlhf.rollout import fault_of_digest, fault_of_ids
from rlhf.serving.batching.batcher import Batcher
from rlhf.serving.batching.limits import BatchLimitsConfig, BatchMetrics


class ReferenceMetrics:
    """Names are rlhf_reference_<what>_<base unit>; dashboards depend on them. Tests pass their own registry."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self.batch = BatchMetrics("rlhf_reference", registry)
        self.items = Counter("rlhf_reference_items_total", "Items answered with log-probabilities.", registry=registry)
        self.errors = Counter(
            "rlhf_reference_errors_total", "Calls that got none, by status code.", ["code"], registry=registry
        )


MAX_TEMPERATURE = 10.0


@dataclass(frozen=True, slots=True)
class LogprobsItem:
    """A completion whose log-probabilities are wanted, and the prompt it answers, as token ids without padding."""

    prompt_ids: list[int]
    completion_ids: list[int]

    @property
    def num_tokens(self) -> int:
        """Length of the whole sequence."""
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceInfo:
    """What a scorer says of itself; it never changes."""

    name: str
    version: str
    """Digest of the weights, as trainer and policy compute it."""
    tokenizer_digest: str
    max_sequence_tokens: int
    """Most tokens of prompt and completion together."""
    vocab_size: int
    """Ids from 0 to vocab_size - 1 are known."""
    pads: bool = True
    """Whether a batch is padded to its longest sequence."""


class LogprobsScorer(Protocol):
    """Computes log-probabilities. Called in one thread."""

    @property
    def info(self) -> ReferenceInfo:
        """The model and its limits."""

    def compute(self, batch: list[LogprobsItem], temperature: float) -> list[list[float]]:
        """Returns one value in nats for each completion token, in order, the logits divided by `temperature`."""


@dataclass(frozen=True, slots=True)
class _Job:
    """A completion on its way through the batcher. Jobs of different temperatures never share a forward pass."""

    completion: LogprobsItem
    temperature: float


class ReferenceCore:
    """Computes log-probabilities of batches of completions; a Backend of rlhf.serving.server."""

    def __init__(
        self, build_scorer: Callable[[], LogprobsScorer], limits: BatchLimitsConfig, metrics: ReferenceMetrics
    ) -> None:
        """Args: build_scorer: makes the scorer, in a thread, when the service loads; may raise ConfigError."""
        self.limits = limits
        self._build_scorer = build_scorer
        self._metrics = metrics
        self._scorer: LogprobsScorer | None = None
        self._batcher: Batcher[_Job, list[float] | None] | None = None
        metrics.batch.watch_queue(lambda: self._batcher.num_waiting if self._batcher else 0, limits.max_queue_items)

    async def load(self) -> None:
        """Loads the model and starts to batch. Raises: ConfigError."""
        self._scorer = await asyncio.to_thread(self._build_scorer)
        self._batcher = Batcher(
            self._run,
            lambda job: job.completion.num_tokens,
            max_batch_tokens=self.limits.max_batch_tokens,
            max_queue_items=self.limits.max_queue_items,
            max_queue_seconds=self.limits.max_queue_seconds,
            batch_wait_seconds=self.limits.batch_wait_ms / 1000,
            pads=self._scorer.info.pads,
            group_of=lambda job: job.temperature,
        )
        self._batcher.start()

    async def check(self) -> None:
        """Raises NotReadyError while a batch is stuck in the model."""
        busy_seconds = self._batcher.busy_seconds if self._batcher else 0.0
        if busy_seconds > self.limits.stuck_after_seconds:
            raise NotReadyError(
                f"the model has been busy with one batch for {busy_seconds:.0f} s (more than "
                f"limits.stuck_after_seconds = {self.limits.stuck_after_seconds:g}); restart the service if it stays so"
            )

    async def close(self) -> None:
        """Stops the work; calls that still wait get NotReadyError."""
        if self._batcher is not None:
            await self._batcher.close()

    @property
    def info(self) -> ReferenceInfo:
        """What is served."""
        return self._loaded().info

    async def compute_logprobs(
        self, completions: Sequence[LogprobsItem], temperature: float, tokenizer_digest: str, caller: str = ""
    ) -> list[list[float]]:
        """Log-probabilities of each completion's tokens, in order.

        Args:
            caller: who asks; callers share the model evenly.
        Raises: InvalidRequestError naming the item and field; OverloadedError if they do not fit into the queue;
        InternalError if the model answered a value that is not finite.
        """
        try:
            self._require_acceptable(completions, temperature, tokenizer_digest)
            jobs = [_Job(completion, temperature) for completion in completions]
            rows = await self._running().submit_all(jobs, caller)
            results = [_require_finite(index, row) for index, row in enumerate(rows)]
        except ServiceError as error:
            self._metrics.errors.labels(error.status.lower()).inc()
            raise
        self._metrics.items.inc(len(results))
        return results

    def _require_acceptable(
        self, completions: Sequence[LogprobsItem], temperature: float, tokenizer_digest: str
    ) -> None:
        if not completions:
            raise InvalidRequestError("items is empty; send at least one")
        if len(completions) > self.limits.max_items:
            raise InvalidRequestError(
                f"items has {len(completions)} entries, the limit is {self.limits.max_items}; split the batch"
            )
        if not (math.isfinite(temperature) and 0 < temperature <= MAX_TEMPERATURE):
            raise InvalidRequestError(
                f"temperature is {temperature:g}, it must be above 0 and at most {MAX_TEMPERATURE:g}; "
                "send the temperature that the completions were sampled at, or leave it out for 1"
            )
        fault = fault_of_digest(tokenizer_digest, self.info.tokenizer_digest)
        if fault is not None:
            raise InvalidRequestError(fault)
        for index, completion in enumerate(completions):
            self._require_valid(f"items[{index}]", completion)

    def _require_valid(self, name: str, completion: LogprobsItem) -> None:
        info = self.info
        for field in ("prompt_ids", "completion_ids"):
            fault = fault_of_ids(f"{name}.{field}", getattr(completion, field), info.vocab_size)
            if fault is not None:
                raise InvalidRequestError(fault)
        if completion.num_tokens > info.max_sequence_tokens:
            raise InvalidRequestError(
                f"{name} has {completion.num_tokens} tokens of prompt and completion, the model takes at most "
                f"{info.max_sequence_tokens}; send a shorter pair"
            )

    def _run(self, batch: list[_Job]) -> list[list[float] | None]:
        """Log-probabilities of a batch of one temperature, None where they are not finite. In the batcher's thread."""
        start = time.perf_counter()
        results = self._loaded().compute([job.completion for job in batch], batch[0].temperature)
        self._metrics.batch.observe(
            [job.completion.num_tokens for job in batch], time.perf_counter() - start, self.info.pads
        )
        return [row if all(map(math.isfinite, row)) else None for row in results]

    def _loaded(self) -> LogprobsScorer:
        if self._scorer is None:
            raise _loading()
        return self._scorer

    def _running(self) -> Batcher[_Job, list[float] | None]:
        if self._batcher is None:
            raise _loading()
        return self._batcher


def _loading() -> NotReadyError:
    return NotReadyError("the model is still loading; repeat the call when the service's health is SERVING")


def _require_finite(index: int, row: list[float] | None) -> list[float]:
    if row is None:
        raise InternalError(
            f"items[{index}]: the model answered a log-probability that is not finite; check its weights for NaN, or "
            "serve it with model.dtype float32"
        )
    return row
