"""Samples what Generate calls ask for, after every reason to refuse a call was looked for."""

import asyncio
import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rlhf.errors import InvalidRequestError, OverloadedError, PreconditionError
from rlhf.rollout import Prompt, Rollout, Sampling, fault_of_digest, fault_of_ids
from services.policy.config import LimitsConfig
from services.policy.engine import Engine, EngineInfo, SampleParams
from services.policy.metrics import PolicyMetrics
from services.policy.updater import WeightUpdater

MAX_TEMPERATURE = 10.0
MIN_TEMPERATURE = 0.01
"""vLLM silently raises a lower one to this; then the log-probabilities would not be those that were asked for."""
MAX_COMPLETIONS_PER_PROMPT = 256
NOT_THE_WHOLE_SOFTMAX = (
    "it would sample from another distribution than the one that training computes log-probabilities of"
)
SEED_MODULUS = 2**63


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateJob:
    """A Generate call, decoded and unchecked."""

    request_id: str
    prompts: list[Prompt]
    sampling: Sampling
    min_policy_version: int = 0
    tokenizer_digest: str = ""
    top_p: float | None = None
    top_k: int | None = None

    @property
    def num_completions(self) -> int:
        """How many completions it asks for."""
        return len(self.prompts) * self.sampling.completions_per_prompt


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


def check_job(job: GenerateJob, info: EngineInfo, limits: LimitsConfig, policy_version: int) -> None:
    """Returns if a job can be sampled.

    Raises: InvalidRequestError naming the field, the value and the remedy; PreconditionError if the weights served,
        those of `policy_version`, are older than the job asks for.
    """
    fault = fault_of_digest(job.tokenizer_digest, info.tokenizer_digest)
    if fault:
        raise InvalidRequestError(fault)
    _check_sampling(job, info)
    _check_prompts(job, info, limits)
    if policy_version < job.min_policy_version:
        raise PreconditionError(
            f"min_policy_version is {job.min_policy_version}, the policy serves version {policy_version}; "
            "push the weights of that version, then ask again"
        )


def _check_sampling(job: GenerateJob, info: EngineInfo) -> None:
    sampling = job.sampling
    if job.top_p is not None and job.top_p != 1:
        raise InvalidRequestError(f"sampling.top_p is {job.top_p:g}; leave it out or send 1: {NOT_THE_WHOLE_SOFTMAX}")
    if job.top_k is not None and job.top_k != 0:
        raise InvalidRequestError(f"sampling.top_k is {job.top_k}; leave it out or send 0: {NOT_THE_WHOLE_SOFTMAX}")
    temperature = sampling.temperature
    if temperature != 0 and not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
        raise InvalidRequestError(
            f"sampling.temperature is {temperature:g}; it must be 0 (greedy) or from {MIN_TEMPERATURE:g} to "
            f"{MAX_TEMPERATURE:g}"
        )
    if not 1 <= sampling.completions_per_prompt <= MAX_COMPLETIONS_PER_PROMPT:
        raise InvalidRequestError(
            f"sampling.completions_per_prompt is {sampling.completions_per_prompt}; "
            f"it must be from 1 to {MAX_COMPLETIONS_PER_PROMPT}"
        )
    if temperature == 0 and sampling.completions_per_prompt > 1:
        raise InvalidRequestError(
            f"sampling.temperature is 0 (greedy) with completions_per_prompt {sampling.completions_per_prompt}: they "
            "would all be the same; ask for 1, or raise the temperature"
        )
    if sampling.max_new_tokens < 1:
        raise InvalidRequestError(f"sampling.max_new_tokens is {sampling.max_new_tokens}; it must be at least 1")
    fault = fault_of_ids("sampling.stop_ids", sampling.stop_ids, info.vocab_size) if sampling.stop_ids else None
    if fault:
        raise InvalidRequestError(fault)


def _check_prompts(job: GenerateJob, info: EngineInfo, limits: LimitsConfig) -> None:
    if not job.prompts:
        raise InvalidRequestError("prompts is empty; send at least one")
    if len(job.prompts) > limits.max_prompts:
        raise InvalidRequestError(
            f"prompts has {len(job.prompts)} entries, the limit is {limits.max_prompts}; split the batch"
        )
    if job.num_completions > limits.max_in_flight:
        raise InvalidRequestError(
            f"prompts x completions_per_prompt is {job.num_completions}, the limit is {limits.max_in_flight}; "
            "split the batch"
        )
    places: dict[str, int] = {}
    for index, prompt in enumerate(job.prompts):
        _check_prompt(f"prompts[{index}]", prompt, job.sampling.max_new_tokens, info)
        first = places.setdefault(prompt.group_id, index)
        if first != index:
            raise InvalidRequestError(
                f"prompts[{index}].group_id is '{prompt.group_id}', as is that of prompts[{first}]; make them distinct"
            )


def _check_prompt(field: str, prompt: Prompt, max_new_tokens: int, info: EngineInfo) -> None:
    if not prompt.group_id:
        raise InvalidRequestError(f"{field}.group_id is empty; give each prompt an id of its own")
    fault = fault_of_ids(f"{field}.prompt_ids", prompt.prompt_ids, info.vocab_size)
    if fault:
        raise InvalidRequestError(fault)
    num_tokens = len(prompt.prompt_ids) + max_new_tokens
    if num_tokens > info.max_sequence_tokens:
        raise InvalidRequestError(
            f"{field}.prompt_ids has {len(prompt.prompt_ids)} tokens, with max_new_tokens {max_new_tokens} that is "
            f"{num_tokens}; the model takes {info.max_sequence_tokens}: shorten the prompt or lower max_new_tokens"
        )
    if prompt.seed is not None and prompt.seed < 0:
        raise InvalidRequestError(f"{field}.seed is {prompt.seed}; it must be at least 0, or left out")
