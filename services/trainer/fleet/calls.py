"""What was asked of the fleet, and the calls that ask its replicas for it."""

import time
from collections import deque
from collections.abc import Callable, Sequence

from rlhf.errors import InternalError, ServiceError
from rlhf.rollout import Prompt, Rollout, Sampling, expected_ids
from services.trainer.fleet.replica import Replica


class Asked:
    """What one sample() was asked for, and how far it is."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        take: Callable[[Rollout], None],
        min_policy_version: int,
        tokenizer_digest: str,
        arrived: set[str],
    ) -> None:
        self.sampling = sampling
        self.take = take
        self.min_policy_version = min_policy_version
        self.tokenizer_digest = tokenizer_digest
        self.arrived = arrived
        self.waiting = deque(prompt for prompt in prompts if self.lacks(prompt))
        self.num_calls = 0
        self.failures: dict[str, tuple[int, float]] = {}
        """How often a group failed, and when it first did (time.monotonic())."""

    def lacks(self, prompt: Prompt) -> bool:
        """Whether a rollout of the prompt is missing."""
        return not self.arrived.issuperset(expected_ids(prompt, self.sampling))


class Call:
    """Prompts that are with a replica, from begin() to end()."""

    def __init__(self, asked: Asked, replica: Replica, prompts: Sequence[Prompt]) -> None:
        self.asked = asked
        self.replica = replica
        self.prompts = prompts
        self.lost = replica.lost
        self._expected = {each for prompt in prompts for each in expected_ids(prompt, asked.sampling)}
        self._missing = set(self._expected)

    def begin(self) -> None:
        """Counts what is asked for."""
        self.asked.num_calls += 1
        self.replica.outstanding += len(self._missing)

    def end(self) -> None:
        """Counts what is not going to come as no longer asked for."""
        self.asked.num_calls -= 1
        self.replica.outstanding -= len(self._missing)
        self._missing.clear()

    def take(self, rollout: Rollout) -> None:
        """Passes a rollout on, unless it was there. Raises: InternalError if nobody asked for it."""
        rollout_id = rollout.rollout_id
        if rollout_id not in self._expected:
            raise InternalError(f"{self.replica.name} sent rollout {rollout_id!r}, which nobody asked for")
        self.replica.answered()
        if rollout_id in self._missing:
            self._missing.remove(rollout_id)
            self.replica.outstanding -= 1
        if rollout_id not in self.asked.arrived:
            self.asked.arrived.add(rollout_id)
            self.asked.take(rollout)

    def require_whole(self) -> None:
        """Raises InternalError if something is missing although the replica said that this was all."""
        if lacking := sorted(self._expected - self.asked.arrived):
            raise InternalError(
                f"{self.replica.name} ended its stream without {len(lacking)} rollouts, such as {lacking[0]!r}"
            )

    def give_back(self, judge: Callable[[int, float, ServiceError], None], error: ServiceError) -> int:
        """Puts prompts that lack something in front of those that wait; returns how many. Raises: what judge does."""
        lacking = [prompt for prompt in self.prompts if self.asked.lacks(prompt)]
        for prompt in lacking:
            count, first_at = self.asked.failures.get(prompt.group_id, (0, time.monotonic()))
            self.asked.failures[prompt.group_id] = (count + 1, first_at)
            judge(count + 1, first_at, error)
        self.asked.waiting.extendleft(reversed(lacking))
        return len(lacking)
