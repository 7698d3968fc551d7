"""From prompts to scored rollouts. Every rollout is sent to be scored the moment it arrives.

    policy services --Generate--> rollout --+--> Score            (each reward service)  --+--> Sample --> journal
                                            +--> ComputeLogprobs  (reference service)    --+

Every call is awaited. A service that is away is waited for, and a rollout that has arrived is kept meanwhile. What is
not a finite number is never made one: such a rollout is dropped and counted. What the journal knows is not asked for.
Several ranks divide the prompts, and each ends with the samples of all.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from rlhf_services.clients.policy import PolicyClient
from rlhf_services.common.errors import InternalError, PreconditionError, ServiceError
from rlhf_services.common.rollout import Prompt, Rollout, Sampling
from rlhf_services.trainer.errors import RunError
from rlhf_services.trainer.fleet.peers import Peers
from rlhf_services.trainer.learning.ranks import Ranks
from rlhf_services.trainer.rollouts.gather import Part, gather, gather_failure
from rlhf_services.trainer.rollouts.journal import StepJournal, expected_ids
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
    uniform_groups: int = 0
    """Groups that were left out because their rewards are all equal; see refill.py."""
    uniform_rollouts: int = 0
    """Rollouts of those groups."""
    generate_seconds: float = 0.0
    """Until the last rollout had arrived; 0 if the journal knew them all."""
    score_wait_seconds: float = 0.0
    """From then until the last score had."""
    reference_wait_seconds: float = 0.0
    """From then until the last reference log-probabilities had."""

    def require_enough(self, max_dropped_fraction: float) -> None:
        """Raises RunError if more than this share was dropped, or all of it."""
        num_dropped = self.dropped.total()
        total = num_dropped + len(self.samples) + self.uniform_rollouts
        if self.samples and num_dropped <= max_dropped_fraction * total:
            return
        reasons = ", ".join(f"{count} {code}" for code, count in sorted(self.dropped.items()))
        raise RunError(
            f"{num_dropped} of {total} rollouts were dropped ({reasons}); training.max_dropped_fraction is "
            f"{max_dropped_fraction}: look at the log of the service concerned"
        )


async def collect(
    prompts: Sequence[Prompt],
    sampling: Sampling,
    peers: Peers,
    *,
    policy_version: int | None = None,
    bring_current: Callable[[PolicyClient], Awaitable[None]] | None = None,
    journal: StepJournal | None = None,
    ranks: Ranks | None = None,
) -> Collected:
    """Returns scored samples for every prompt, on every rank.

    Args:
        prompts: with distinct group_ids; spread over ranks and policy services.
        sampling: how to sample; completions_per_prompt for each prompt.
        peers: the services, checked.
        policy_version: the version that every token must be sampled by; None takes any.
        bring_current: pushes the current weights to a policy service that has lost them; None lets that be an error.
        journal: of this step; what it knows is taken from it, what arrives is added. None keeps nothing.
        ranks: the processes that call this together, with the same prompts; None is one alone.
    Raises: NotReadyError when a service stayed away for too long; RunError when the reference is no longer the same
        model, or the journal cannot be written; other ServiceErrors as they come. What arrived before is journaled.
    """
    ranks = Ranks() if ranks is None else ranks
    if journal is not None:
        journal.begin(prompts, sampling, policy_version)
    scoring = Scoring(peers, temperature=sampling.temperature, policy_version=policy_version)
    run = _Collection(sampling, peers, scoring, policy_version or 0, bring_current, journal)
    try:
        mine = await run.collect_share(prompts[ranks.rank :: ranks.world_size], first_policy=ranks.rank)
    except (ServiceError, RunError) as error:
        await gather_failure(error, ranks)
        raise
    whole = await gather(mine, ranks)
    order = [rollout_id for prompt in prompts for rollout_id in expected_ids(prompt, sampling)]
    generate_seconds, score_wait_seconds, reference_wait_seconds = whole.seconds
    return Collected(
        samples=[whole.samples[rollout_id] for rollout_id in order if rollout_id in whole.samples],
        dropped=whole.dropped,
        generate_seconds=generate_seconds,
        score_wait_seconds=score_wait_seconds,
        reference_wait_seconds=reference_wait_seconds,
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
        journal: StepJournal | None,
    ) -> None:
        self._part = Part()
        self._started_at = self._generated_at = time.monotonic()
        self._sampling = sampling
        self._peers = peers
        self._scoring = scoring
        self._min_policy_version = min_policy_version
        self._bring_current = bring_current
        self._journal = journal
        self._arrived: set[str] = set()
        self._slots = asyncio.Semaphore(MAX_SCORING)

    async def collect_share(self, share: Sequence[Prompt], *, first_policy: int) -> Part:
        """Returns what one rank collects for its prompts; asks for nothing if the journal knows it all.

        Args: first_policy: the policy service that gets the first prompt; the others follow in turn.
        """
        self._take_known(share)
        missing = [prompt for prompt in share if not self._arrived.issuperset(self._expected_ids(prompt))]
        num_policies = len(self._peers.policies)
        async with task_group() as tasks:
            for index in range(num_policies):
                if prompts := missing[index::num_policies]:
                    policy = self._peers.policies[(first_policy + index) % num_policies]
                    tasks.create_task(self._sample(policy, prompts, tasks))
        answered_at = (self._scoring.scored_at, self._scoring.referenced_at)
        waits = [max(0.0, at - self._generated_at) for at in answered_at]
        self._part.seconds = [self._generated_at - self._started_at, *waits]
        return self._part

    def _take_known(self, share: Sequence[Prompt]) -> None:
        """Takes from the journal what it knows."""
        if self._journal is None:
            return
        for rollout_id in (each for prompt in share for each in self._expected_ids(prompt)):
            known = self._journal.known(rollout_id)
            if isinstance(known, Sample):
                self._part.samples[rollout_id] = known
            elif known is not None:
                self._part.dropped[known] += 1
            if known is not None:
                self._arrived.add(rollout_id)

    def _expected_ids(self, prompt: Prompt) -> list[str]:
        return expected_ids(prompt, self._sampling)

    async def _sample(self, policy: PolicyClient, share: Sequence[Prompt], tasks: asyncio.TaskGroup) -> None:
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
        expected = {rollout_id for prompt in share for rollout_id in self._expected_ids(prompt)}
        # A prompt of which something is missing is asked for whole: its seeds then draw the same completions again, so
        # those that were slow to arrive are not exchanged for others.
        missing = [prompt for prompt in share if not self._arrived.issuperset(self._expected_ids(prompt))]
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
                self._generated_at = time.monotonic()
                tasks.create_task(self._complete(rollout))
        if lost := sorted(expected - self._arrived):
            raise InternalError(f"{source} ended its stream without {len(lost)} rollouts, such as {lost[0]!r}")

    async def _complete(self, rollout: Rollout) -> None:
        rollout_id = rollout.rollout_id
        try:
            async with self._slots:
                sample = await self._scoring.complete(rollout)
        except UnusableError as reason:
            if self._journal is not None:
                self._journal.append_dropped(rollout_id, str(reason))
            self._part.dropped[str(reason)] += 1
            return
        if self._journal is not None:
            self._journal.append(sample)
        self._part.samples[rollout_id] = sample
