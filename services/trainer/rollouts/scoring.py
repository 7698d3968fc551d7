"""From a rollout to a sample: its rewards and its reference log-probabilities, asked for at the same time."""

import math
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from rlhf.client.reference import LogprobsItem
from rlhf.client.reward import RewardClient
from rlhf.client.reward_types import Reward, RewardError, ScoreItem
from rlhf.client.tasks import task_group
from rlhf.errors import InternalError, RunError
from rlhf.learning.sample import Sample
from rlhf.rollout import Rollout
from services.trainer.fleet.peers import Peers

T = TypeVar("T")


class UnusableError(Exception):
    """A rollout that lacks a finite number; the argument is a code such as "score_too_long"."""


class Scoring:
    """Completes rollouts of one step, and remembers when the last answers came."""

    def __init__(
        self,
        peers: Peers,
        *,
        temperature: float,
        policy_version: int | None,
        newest_version: Callable[[], int] | None = None,
    ) -> None:
        """Nothing is called yet.

        Args:
            peers: the services. temperature: of the sampling.
            policy_version: the version that must have sampled every token; None: any.
            newest_version: returns the newest version that is allowed as well; None: no other.
        """
        self.scored_at = self.referenced_at = 0.0
        """time.monotonic() of the last score and of the last reference log-probabilities."""
        self._peers = peers
        # Greedy sampling reports log-probabilities at temperature 1 (rollout.proto).
        self._temperature = temperature or 1.0
        self._policy_version = policy_version
        self._newest_version = newest_version

    async def complete(self, rollout: Rollout) -> Sample:
        """Returns the rollout with its scores.

        Raises: UnusableError if a number is missing or not finite; RunError if the reference is no longer the same
            model; ServiceError if a service stayed away for too long or broke its contract.
        """
        if not _all_finite(rollout.logprobs):
            raise UnusableError("sampler_not_finite")
        if not self._is_current(rollout):
            raise UnusableError("policy_version_not_current")
        async with task_group() as tasks:
            reference = tasks.create_task(self._ref_logprobs(rollout))
            scores = {name: tasks.create_task(self._score(each, rollout)) for name, each in self._peers.rewards.items()}
        results = {name: task.result() for name, task in scores.items()}
        return Sample(
            rollout=rollout,
            rewards={name: result.reward for name, result in results.items()},
            ref_logprobs=reference.result(),
            spreads={
                name: result.spread
                for name, result in results.items()
                if result.spread is not None and math.isfinite(result.spread)
            },
        )

    def _is_current(self, rollout: Rollout) -> bool:
        """Whether every token was sampled by a version that was asked for. A rollout without tokens never is."""
        oldest = self._policy_version
        if oldest is None:
            return True
        newest = oldest if self._newest_version is None else self._newest_version()
        versions = rollout.policy_versions
        return bool(versions) and oldest <= min(versions) and max(versions) <= newest

    async def _score(self, client: RewardClient, rollout: Rollout) -> Reward:
        item = ScoreItem.tokens(rollout.prompt_ids, rollout.completion_ids, rollout.rollout_id)
        digest = self._peers.tokenizer_digest
        results = await client.score_patiently([item], self._peers.patience, tokenizer_digest=digest)
        result = _only(results, client.name)
        self.scored_at = time.monotonic()
        if isinstance(result, RewardError):
            raise UnusableError(f"score_{result.code}")
        if not math.isfinite(result.reward):
            raise UnusableError("score_not_finite")
        return result

    async def _ref_logprobs(self, rollout: Rollout) -> list[float]:
        client = self._peers.reference
        item = LogprobsItem(rollout.prompt_ids, rollout.completion_ids, rollout.rollout_id)
        batch = await self._peers.patience.ask(
            client,
            lambda: client.compute_logprobs(
                [item],
                temperature=self._temperature,
                tokenizer_digest=self._peers.tokenizer_digest,
                deadline_seconds=self._peers.config.score_deadline_seconds,
            ),
        )
        self.referenced_at = time.monotonic()
        if batch.reference_version != self._peers.reference_version:
            raise RunError(
                f"{client.name} now serves {batch.reference_version[:12]}, the run began with "
                f"{self._peers.reference_version[:12]}: start it with the first model again, then use --resume"
            )
        logprobs = _only(batch.logprobs, client.name)
        if len(logprobs) != len(rollout.completion_ids):
            raise InternalError(
                f"{client.name} sent {len(logprobs)} log-probabilities for {len(rollout.completion_ids)} tokens of "
                f"rollout {rollout.rollout_id!r}"
            )
        if not _all_finite(logprobs):
            raise UnusableError("reference_not_finite")
        return logprobs


def _only(results: Sequence[T], name: str) -> T:
    if len(results) != 1:
        raise InternalError(f"{name} sent {len(results)} results for 1 item")
    return results[0]


def _all_finite(values: Sequence[float]) -> bool:
    return all(math.isfinite(value) for value in values)
