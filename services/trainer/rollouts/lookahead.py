"""Sampling that runs ahead of training: while a step is trained on, up to k later ones are sampled and scored.

                     k = 0                                       k = 1
    policy services  [sample 1]         [sample 2]               [sample 1][sample 2][sample 3]
    trainer                    [train 1]          [train 2]                [train 1 ][train 2 ]

The sampling of step n begins once step n - 1 - k is trained, so no token of it is more than k versions behind the
weights that it is trained on, and never more than k steps wait. It begins and ends in the foreground, where all ranks
do the same things in the same order; in between it runs beside the training and waits for no other rank. Training
waits for its step, whatever came in before it.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.data.prompts import PromptSampler
from rlhf.learning.ranks import Ranks
from rlhf.learning.sample import Sample
from rlhf.rollout import Prompt
from services.trainer.config.online import OnlineRunConfig
from services.trainer.fleet.peers import Peers
from services.trainer.fleet.policy_pushes import PolicyPushes
from services.trainer.rollouts.collect import Collected, Collection, Part, collect_groups
from services.trainer.rollouts.journal import Journal, StepJournal

TOO_OLD = "policy_too_old"


@dataclass(slots=True)
class _Ahead:
    """A step whose rollouts are under way, or there."""

    journal: StepJournal
    collection: Collection
    task: asyncio.Task[Part]
    prompts_state: dict[str, Any]
    """Of the prompts, once this step's were drawn."""


class Lookahead:
    """Collects the rollouts of one step after the other, and those of later steps meanwhile."""

    def __init__(
        self,
        config: OnlineRunConfig,
        prompts: PromptSampler,
        peers: Peers,
        pushes: PolicyPushes,
        journal: Journal,
        ranks: Ranks,
        *,
        step: int,
    ) -> None:
        """Nothing begins before collect(). Args: step: how many were trained before."""
        self.prompts_state = prompts.state()
        """Where the prompts stood after those of the step that was collected last: what a checkpoint keeps."""
        self._config = config
        self._max_lag = config.training.max_policy_lag
        self._prompts = prompts
        self._peers = peers
        self._pushes = pushes
        self._journal = journal
        self._ranks = ranks
        self._sampling = config.sampling.of_each(config.training.group_size)
        self._begun = step
        """Newest step whose collection has begun."""
        self._ahead: deque[_Ahead] = deque()

    async def collect(self, step: int, policy_version: int) -> Collected:
        """Returns the rollouts of a step, all of them in the journal. All ranks call it, for one step after the other.

        Args: policy_version: of the weights that will be trained on them.
        Raises: as Collection.finish; RunError if too much of the step was dropped.
        """
        training = self._config.training
        if self._config.groups.drop_uniform:
            journal = self._journal.open_step(step)
            collecting = self._collect_groups(journal, policy_version)
        else:
            while self._begun < min(step + self._max_lag, training.steps):
                self._begun += 1
                prompts = self._prompts.draw(training.prompts_per_step)
                self._ahead.append(await self._begin(self._journal.open_step(self._begun), prompts, policy_version))
            journal = self._ahead[0].journal
            collecting = self._finish(self._ahead[0])
        try:
            collected = await collecting
            drop_too_old(collected, policy_version, self._max_lag)
            collected.require_enough(training.max_dropped_fraction)
            journal.sync()
        finally:
            journal.close()
        self.prompts_state = self._ahead.popleft().prompts_state if self._ahead else self._prompts.state()
        return collected

    async def close(self) -> None:
        """Gives up what is under way; what has arrived is in the journal."""
        for ahead in self._ahead:
            ahead.task.cancel()
        # How they end no longer matters: the run has ended, for another reason.
        await asyncio.gather(*(ahead.task for ahead in self._ahead), return_exceptions=True)
        while self._ahead:
            self._ahead.popleft().journal.close()

    async def _begin(self, journal: StepJournal, prompts: Sequence[Prompt], policy_version: int) -> _Ahead:
        """Starts to sample and score some prompts; what the journal knows needs no service, and so no push."""
        if not journal.is_complete(prompts, self._sampling, policy_version):
            await self._pushes.push_if_new(policy_version)
        collection = Collection(
            prompts,
            self._sampling,
            self._peers,
            policy_version=policy_version,
            newest_version=(lambda: self._pushes.policy_version) if self._max_lag else None,
            journal=journal,
            ranks=self._ranks,
        )
        task = asyncio.create_task(collection.collect_share())
        return _Ahead(journal, collection, task, self._prompts.state())

    async def _finish(self, ahead: _Ahead) -> Collected:
        return await ahead.collection.finish(self._pushes.unless_it_fails(ahead.task))

    async def _collect_groups(self, journal: StepJournal, policy_version: int) -> Collected:
        """Collects rounds of prompts until the step has its groups: each round is begun and finished at once."""

        async def collect_prompts(prompts: Sequence[Prompt]) -> Collected:
            return await self._finish(await self._begin(journal, prompts, policy_version))

        training, max_rounds = self._config.training, self._config.groups.max_rounds
        return await collect_groups(
            self._prompts.draw, training.prompts_per_step, collect_prompts, max_rounds=max_rounds
        )


def drop_too_old(collected: Collected, policy_version: int, max_lag: int) -> None:
    """Drops samples with a token that is further behind than allowed, and counts them.

    None should be: it is what the bound rests on if a service sampled with other weights than it said it would.
    """
    kept = [sample for sample in collected.samples if max(lags_of(sample, policy_version), default=0) <= max_lag]
    if num_dropped := len(collected.samples) - len(kept):
        collected.samples = kept
        collected.dropped[TOO_OLD] += num_dropped


def lags_of(sample: Sample, policy_version: int) -> list[int]:
    """Returns by how many versions each token's policy is behind the given one."""
    return [policy_version - version for version in sample.rollout.policy_versions]


def count_lags(samples: Sequence[Sample], policy_version: int) -> Mapping[int, int]:
    """Returns how many tokens are how many versions behind."""
    return Counter(lag for sample in samples for lag in lags_of(sample, policy_version))
