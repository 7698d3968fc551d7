"""From a Generate call to a stream of rollouts: admit it, fan it out to the engine, give up all of it or none."""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

from rlhf.errors import OverloadedError
from rlhf.rollout import Prompt, Rollout
from services.policy.config import LimitsConfig
from services.policy.engine import Engine, SampleParams
from services.policy.metrics import PolicyMetrics
from services.policy.requests import GenerateJob, check_job
from services.policy.updater import WeightUpdater

SEED_MODULUS = 2**63


class Generator:
    """Samples the completions of Generate calls."""

    def __init__(self, engine: Engine, weights: WeightUpdater, limits: LimitsConfig, metrics: PolicyMetrics) -> None:
        self._engine = engine
        self._weights = weights
        self._limits = limits
        self._metrics = metrics
        self._in_flight = 0

    async def generate(self, job: GenerateJob) -> AsyncGenerator[Rollout, None]:
        """Yields each rollout as it finishes. Closing the iterator, or a failure, cancels those still being sampled.

        Raises: InvalidRequestError or PreconditionError for a job that cannot be sampled, OverloadedError if too many
            completions are in flight, NotReadyError if the engine cannot go on.
        """
        check_job(job, self._engine.info, self._limits, self._weights.served.policy_version)
        with self._admitted(job.num_completions):
            tasks = [
                asyncio.create_task(self._sample(job, prompt, index))
                for prompt in job.prompts
                for index in range(job.sampling.completions_per_prompt)
            ]
            try:
                for finished in asyncio.as_completed(tasks):
                    yield await finished
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _sample(self, job: GenerateJob, prompt: Prompt, index: int) -> Rollout:
        sampling = job.sampling
        params = SampleParams(
            max_new_tokens=sampling.max_new_tokens,
            temperature=sampling.temperature,
            stop_ids=sampling.stop_ids or self._engine.info.stop_ids,
            seed=None if prompt.seed is None else (prompt.seed + index) % SEED_MODULUS,
        )
        # A caller may repeat its request_id, the engine may not: a retry can meet the call that it replaces.
        request_id = f"{job.request_id}/{prompt.group_id}/{index}/{uuid.uuid4().hex[:8]}"
        completion = await self._engine.generate(prompt.prompt_ids, params, request_id)
        self._metrics.rollouts.labels(completion.finish_reason).inc()
        self._metrics.completion_tokens.inc(len(completion.completion_ids))
        return Rollout(
            rollout_id=f"{prompt.group_id}/{index}",
            group_id=prompt.group_id,
            prompt_ids=prompt.prompt_ids,
            completion_ids=completion.completion_ids,
            logprobs=completion.logprobs,
            policy_versions=completion.policy_versions,
            finish_reason=completion.finish_reason,
        )

    @contextmanager
    def _admitted(self, num_completions: int) -> Iterator[None]:
        """Counts completions as in flight. Raises OverloadedError if there would be too many."""
        if self._in_flight + num_completions > self._limits.max_in_flight:
            raise OverloadedError(
                f"{self._in_flight} completions are in flight and this call asks for {num_completions}; the limit is "
                f"{self._limits.max_in_flight}: retry when some have finished, or send less at once"
            )
        self._in_flight += num_completions
        self._metrics.in_flight.set(self._in_flight)
        try:
            yield
        finally:
            self._in_flight -= num_completions
            self._metrics.in_flight.set(self._in_flight)
