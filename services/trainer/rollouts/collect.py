"""From prompts to scored rollouts. Every rollout is sent to be scored the moment it arrives.

    policy services --Generate--> rollout --+--> Score            (each reward service)  --+--> Sample
                                            +--> ComputeLogprobs  (reference service)    --+

Every call is awaited. A service that is away is waited for, and a rollout that has arrived is kept meanwhile. What is
not a finite number is never made one: such a rollout is dropped and counted.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from rlhf_services.clients.policy import PolicyClient
from rlhf_services.common.errors import InternalError, PreconditionError
from rlhf_services.common.rollout import Prompt, Rollout, Sampling
from rlhf_services.trainer.errors import RunError
from rlhf_services.trainer.rollouts.peers import Peers
from rlhf_services.trainer.rollouts.scoring import Sample, Scoring, UnusableError
from rlhf_services.trainer.rollouts.tasks import task_group

MAX_SCORING = 128
"""Rollouts that are with the scorers at once; more would only wait in their queues, or overflow them."""


@dataclass(slots=True, kw_only=True)
class Collected:
    """The samples of one step."""

    samples: list[Sample] = field(default_factory=list)
    """In the order of the prompts, whatever order they arrived in."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Rollouts without a usable number, by what was wrong ("score_too_long", "reference_not_finite", ...)."""
    generate_seconds: float = 0.0
    """Until the last rollout had arrived."""
    score_wait_seconds: float = 0.0
    """From then until the last score had."""
    reference_wait_seconds: float = 0.0
    """From then until the last reference log-probabilities had."""

    def require_enough(self, max_dropped_fraction: float) -> None:
        """Raises RunError if more than this share was dropped, or all of it."""
        num_dropped = self.dropped.total()
        total = num_dropped + len(self.samples)
        if self.samples and num_dropped <= max_dropped_fraction * total:
            return
        reasons = ", ".join(f"{count} {code}" for code, count in sorted(self.dropped.items()))
        raise RunError(
            f"{num_dropped} of {total} rollouts were dropped ({reasons}); ppo.max_dropped_fraction is "
            f"{max_dropped_fraction}: look at the log of the service concerned"
        )


async def collect(
    prompts: Sequence[Prompt],
    sampling: Sampling,
    peers: Peers,
    *,
    policy_version: int | None = None,
    bring_current: Callable[[PolicyClient], Awaitable[None]] | None = None,
) -> Collected:
    """Returns scored samples for every prompt.

    Args:
        prompts: with distinct group_ids; spread over the policy services.
        sampling: how to sample; completions_per_prompt for each prompt.
        peers: the services, checked.
        policy_version: the version that every token must be sampled by; None takes any.
        bring_current: pushes the current weights to a policy service that has lost them; None lets that be an error.
    Raises: NotReadyError when a service stayed away for too long; RunError when the reference is no longer the same
        model; other ServiceErrors as they come.
    """
    scoring = Scoring(peers, temperature=sampling.temperature, policy_version=policy_version)
    run = _Collection(sampling, peers, scoring, policy_version or 0, bring_current)
    start = time.monotonic()
    async with task_group() as tasks:
        num_policies = len(peers.policies)
        for index, policy in enumerate(peers.policies):
            if share := prompts[index::num_policies]:
                tasks.create_task(run.sample(policy, share, tasks))
    order = [rollout_id for prompt in prompts for rollout_id in run.expected_ids(prompt)]
    return Collected(
        samples=[run.samples[rollout_id] for rollout_id in order if rollout_id in run.samples],
        dropped=run.dropped,
        generate_seconds=run.generated_at - start,
        score_wait_seconds=max(0.0, scoring.scored_at - run.generated_at),
        reference_wait_seconds=max(0.0, scoring.referenced_at - run.generated_at),
    )


class _Collection:
    """The state of one collect() call."""

    def __init__(
        self,
        sampling: Sampling,
        peers: Peers,
        scoring: Scoring,
        min_policy_version: int,
        bring_current: Callable[[PolicyClient], Awaitable[None]] | None,
    ) -> None:
        self.samples: dict[str, Sample] = {}
        self.dropped: Counter[str] = Counter()
        self.generated_at = time.monotonic()
        self._sampling = sampling
        self._peers = peers
        self._scoring = scoring
        self._min_policy_version = min_policy_version
        self._bring_current = bring_current
        self._arrived: set[str] = set()
        self._slots = asyncio.Semaphore(MAX_SCORING)

    def expected_ids(self, prompt: Prompt) -> list[str]:
        """Returns the rollout_ids that a prompt's completions will have."""
        return [f"{prompt.group_id}/{index}" for index in range(self._sampling.completions_per_prompt)]

    async def sample(self, policy: PolicyClient, share: Sequence[Prompt], tasks: asyncio.TaskGroup) -> None:
        """Samples a share of the prompts from one policy service, and starts the scoring of each rollout."""
        limit = self._peers.max_prompts
        for start in range(0, len(share), limit):
            ask = partial(self._ask_for_missing, policy, share[start : start + limit], tasks)
            await self._peers.call(policy, ask)

    async def _ask_for_missing(self, policy: PolicyClient, share: Sequence[Prompt], tasks: asyncio.TaskGroup) -> None:
        """Asks for what has not arrived yet; a policy service whose weights are stale is brought to ours first."""
        try:
            await self._stream(policy, share, tasks)
        except PreconditionError:
            if self._bring_current is None:
                raise
            await self._bring_current(policy)
            await self._stream(policy, share, tasks)

    async def _stream(self, policy: PolicyClient, share: Sequence[Prompt], tasks: asyncio.TaskGroup) -> None:
        expected = {rollout_id for prompt in share for rollout_id in self.expected_ids(prompt)}
        # A prompt of which something is missing is asked for whole: its seeds then draw the same completions again, so
        # those that were slow to arrive are not exchanged for others.
        missing = [prompt for prompt in share if not self._arrived.issuperset(self.expected_ids(prompt))]
        if not missing:
            return
        stream = policy.generate(
            missing,
            self._sampling,
            min_policy_version=self._min_policy_version,
            tokenizer_digest=self._peers.tokenizer_digest,
            deadline_seconds=self._peers.config.generate_deadline_seconds,
        )
        source = f"{policy.service} at {policy.target}"
        async for rollout in stream:
            if rollout.rollout_id not in expected:
                raise InternalError(f"{source} sent rollout {rollout.rollout_id!r}, which nobody asked for")
            if rollout.rollout_id not in self._arrived:
                self._arrived.add(rollout.rollout_id)
                self.generated_at = time.monotonic()
                tasks.create_task(self._complete(rollout))
        if lost := sorted(expected - self._arrived):
            raise InternalError(f"{source} ended its stream without {len(lost)} rollouts, such as {lost[0]!r}")

    async def _complete(self, rollout: Rollout) -> None:
        try:
            async with self._slots:
                self.samples[rollout.rollout_id] = await self._scoring.complete(rollout)
        except UnusableError as reason:
            self.dropped[str(reason)] += 1
