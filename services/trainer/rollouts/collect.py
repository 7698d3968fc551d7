"""From prompts to scored rollouts. Every rollout is sent to be scored the moment it arrives.

    policy services --Generate--> rollout --+--> Score            (each reward service)  --+--> Sample --> journal
     (dispatch.py)                          +--> ComputeLogprobs  (reference service)    --+

Every call is awaited. A service that is away is waited for, and a rollout that has arrived is kept meanwhile. What is
not a finite number is never made one: such a rollout is dropped and counted. What the journal knows is not asked for.
Several ranks divide the prompts, and each ends with the samples of all.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from rlhf.client.tasks import task_group
from rlhf.errors import RunError, ServiceError
from rlhf.learning.ranks import ALONE, Ranks, exchange, exchange_failure
from rlhf.learning.sample import Sample, decode_sample, encode_sample
from rlhf.rollout import Prompt, Rollout, Sampling, expected_ids
from services.trainer.fleet.peers import Peers
from services.trainer.rollouts.journal import StepJournal
from services.trainer.rollouts.scoring import Scoring, UnusableError

MAX_SCORING = 128
"""Rollouts that are with the scorers at once; more would only wait in their queues, or overflow them."""


@dataclass(slots=True, kw_only=True)
class Part:
    """What a rank collected for its share of the prompts."""

    samples: dict[str, Sample] = field(default_factory=dict)
    """By rollout_id."""
    dropped: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    """How long it waited, for one thing after another; the ranks wait side by side, so the longest counts."""


@dataclass(slots=True, kw_only=True)
class Collected:
    """The samples of one step."""

    samples: list[Sample] = field(default_factory=list)
    """In the order of the prompts, whatever order they arrived in."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Rollouts without a usable number, by what was wrong ("score_too_long", "reference_not_finite", ...)."""
    uniform_groups: int = 0
    """Groups that were left out because their rewards are all equal; see collect_groups."""
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
    journal: StepJournal | None = None,
    ranks: Ranks = ALONE,
) -> Collected:
    """Returns scored samples for every prompt, on every rank.

    Args:
        prompts: with distinct group_ids; spread over ranks and policy services.
        sampling: how to sample; completions_per_prompt for each prompt.
        peers: the services, checked.
        policy_version: the version that every token must be sampled by; None takes any.
        journal: of this step; what it knows is taken from it, what arrives is added. None keeps nothing.
        ranks: the processes that call this together, with the same prompts.
    Raises: NotReadyError when a service stayed away for too long; RunError when the reference is no longer the same
        model, or the journal cannot be written; other ServiceErrors as they come. What arrived before is journaled.
    """
    collection = Collection(prompts, sampling, peers, policy_version=policy_version, journal=journal, ranks=ranks)
    return await collection.finish(collection.collect_share())


class Collection:
    """One collection in its three parts: begun by the constructor, collected perhaps in the background, finished.

    Beginning and finishing is for the foreground, where all ranks do the same things in the same order.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        peers: Peers,
        *,
        policy_version: int | None = None,
        newest_version: Callable[[], int] | None = None,
        journal: StepJournal | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        """Tells the journal what is going to be asked for; calls no service and no other rank.

        Args:
            policy_version: the version that every token must be sampled by, or by a later one if newest_version is
                given; None takes any.
            newest_version: returns the last version that was pushed, or is just being; None allows no later one.
            prompts, sampling, peers, journal, ranks: as for collect().
        """
        self._prompts = prompts
        self._sampling = sampling
        self._peers = peers
        self._min_policy_version = policy_version or 0
        self._journal = journal
        self._ranks = ranks
        self._scoring = Scoring(
            peers, temperature=sampling.temperature, policy_version=policy_version, newest_version=newest_version
        )
        self._part = Part()
        self._arrived: set[str] = set()
        self._slots = asyncio.Semaphore(MAX_SCORING)
        self._generated_at = 0.0
        if journal is not None:
            journal.begin(prompts, sampling, policy_version)

    async def collect_share(self) -> Part:
        """Returns what this rank collects for its prompts; asks for nothing if the journal knows it all.

        Nothing in it waits for another rank, so it may run in the background. Raises: as collect().
        """
        started = self._generated_at = time.monotonic()
        share = self._prompts[self._ranks.rank :: self._ranks.world_size]
        self._take_known(share)
        missing = [prompt for prompt in share if not self._arrived.issuperset(expected_ids(prompt, self._sampling))]
        if missing:
            async with task_group() as tasks:

                def take(rollout: Rollout) -> None:
                    self._generated_at = time.monotonic()
                    tasks.create_task(self._complete(rollout))

                await self._peers.dispatcher.sample(
                    missing,
                    self._sampling,
                    take,
                    min_policy_version=self._min_policy_version,
                    tokenizer_digest=self._peers.tokenizer_digest,
                    known=self._arrived,
                )
        answered_at = (self._scoring.scored_at, self._scoring.referenced_at)
        waits = [max(0.0, at - self._generated_at) for at in answered_at]
        self._part.seconds = [self._generated_at - started, *waits]
        return self._part

    async def finish(self, share: Awaitable[Part]) -> Collected:
        """Returns the samples of all ranks, once each has its share. All ranks call it.

        Args: share: collect_share(), or the task that runs it.
        Raises: as collect(); a failure of any rank is one of all.
        """
        try:
            mine = await share
        except (ServiceError, RunError) as error:
            await exchange_failure(error, self._ranks)
            raise
        whole = await _gather(mine, self._ranks)
        order = [rollout_id for prompt in self._prompts for rollout_id in expected_ids(prompt, self._sampling)]
        generate_seconds, score_wait_seconds, reference_wait_seconds = whole.seconds
        return Collected(
            samples=[whole.samples[rollout_id] for rollout_id in order if rollout_id in whole.samples],
            dropped=whole.dropped,
            generate_seconds=generate_seconds,
            score_wait_seconds=score_wait_seconds,
            reference_wait_seconds=reference_wait_seconds,
        )

    def _take_known(self, share: Sequence[Prompt]) -> None:
        """Takes from the journal what it knows."""
        if self._journal is None:
            return
        for rollout_id in (each for prompt in share for each in expected_ids(prompt, self._sampling)):
            known = self._journal.known(rollout_id)
            if isinstance(known, Sample):
                self._part.samples[rollout_id] = known
            elif known is not None:
                self._part.dropped[known] += 1
            if known is not None:
                self._arrived.add(rollout_id)

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


async def _gather(part: Part, ranks: Ranks) -> Part:
    """Returns the parts of all ranks as one. Raises: RunError or NotReadyError if another rank sent its failure."""
    if ranks.world_size == 1:
        return part
    samples = [encode_sample(sample) for sample in part.samples.values()]
    messages = await exchange({"samples": samples, "dropped": part.dropped, "seconds": part.seconds}, ranks)
    whole = Part()
    for message in messages:
        for sample in map(decode_sample, message["samples"]):
            whole.samples[sample.rollout.rollout_id] = sample
        whole.dropped.update(message["dropped"])
    whole.seconds = [max(times) for times in zip(*(message["seconds"] for message in messages), strict=True)]
    return whole


def rewards_differ(group: Sequence[Sample]) -> bool:
    """Whether a group of samples carries a gradient: at least two, not all of one reward."""
    return len({sample.reward for sample in group}) > 1


async def collect_groups(
    draw: Callable[[int], list[Prompt]],
    num_prompts: int,
    collect_prompts: Callable[[Sequence[Prompt]], Awaitable[Collected]],
    max_rounds: int = 1,
) -> Collected:
    """Returns the samples of num_prompts groups worth keeping, in the order of drawing; of fewer after the last round.

    Args:
        draw: returns the next prompts; what is drawn stays drawn, kept or not.
        num_prompts: groups that the step wants.
        collect_prompts: samples and scores some prompts, such as collect() with the step's journal.
        max_rounds: how often prompts are drawn, the first time included.
    Raises: RunError if not one group is worth keeping; what collect_prompts raises.
    """
    whole = Collected()
    num_kept = num_drawn = 0
    for _ in range(max_rounds):
        prompts = draw(num_prompts - num_kept)
        num_drawn += len(prompts)
        num_kept += _add(whole, await collect_prompts(prompts))
        if num_kept == num_prompts:
            break
    # Samples that were all dropped for want of a score are another fault, which require_enough() names.
    if num_kept == 0 and whole.uniform_groups:
        raise RunError(
            f"the completions of each of {num_drawn} prompts got equal rewards, in {max_rounds} rounds: there is "
            "nothing to learn from. Raise group_size or the temperature, choose prompts that the policy solves "
            "sometimes, or look at the reward service"
        )
    return whole


def _add(whole: Collected, part: Collected) -> int:
    """Adds a round to the step; returns how many of its groups were kept."""
    num_kept = 0
    for _, samples in groupby(part.samples, key=lambda sample: sample.rollout.group_id):
        group = list(samples)
        if rewards_differ(group):
            whole.samples += group
            num_kept += 1
        else:
            whole.uniform_groups += 1
            whole.uniform_rollouts += len(group)
    whole.dropped.update(part.dropped)
    whole.generate_seconds += part.generate_seconds
    whole.score_wait_seconds += part.score_wait_seconds
    whole.reference_wait_seconds += part.reference_wait_seconds
    return num_kept
