"""Gives prompts to the replicas of a fleet, each to one that has room, and again to another one if that fails."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import InitVar, dataclass, field

from rlhf.client.tasks import News, first_of, task_group
from rlhf.errors import InternalError, NotReadyError, OverloadedError, PreconditionError, ServiceError
from rlhf.rollout import Prompt, Rollout, Sampling, expected_ids
from services.trainer.config.sections import ServicesConfig
from services.trainer.fleet.fleet import Fleet
from services.trainer.fleet.replica import Replica

FULL_SECONDS = 1.0
"""Until a replica is asked again that said it has no room, and not when it will."""
MAX_FAILURES = 5
"""How often a prompt may have failed when the patience with the services is over; with more it is to blame itself."""


@dataclass(eq=False)
class Asked:
    """What one sample() was asked for, and how far it is."""

    prompts: InitVar[Sequence[Prompt]]
    sampling: Sampling
    take: Callable[[Rollout], None]
    min_policy_version: int
    tokenizer_digest: str
    arrived: set[str]
    waiting: deque[Prompt] = field(init=False)
    num_calls: int = 0
    failures: dict[str, tuple[int, float]] = field(default_factory=dict)
    """How often a group failed, and when it first did (time.monotonic())."""

    def __post_init__(self, prompts: Sequence[Prompt]) -> None:
        self.waiting = deque(prompt for prompt in prompts if self.lacks(prompt))

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


class Dispatcher:
    """Samples from the whole fleet. Several samplings may be under way; the older one's prompts go first."""

    def __init__(self, fleet: Fleet, config: ServicesConfig, *, rank: int = 0) -> None:
        """Args: the replicas; deadlines and patience; which process this is: each begins with another replica."""
        self._fleet = fleet
        self._config = config
        self._rank = rank
        self._asked: list[Asked] = []
        self._full: set[Replica] = set()
        self._news = News()
        self._clock = IdleClock(fleet)

    async def sample(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        take: Callable[[Rollout], None],
        *,
        min_policy_version: int,
        tokenizer_digest: str,
        known: set[str] | None = None,
    ) -> None:
        """Returns once every rollout of the prompts has arrived; each was taken once.

        Args:
            take: told of each rollout as it arrives.
            min_policy_version: the oldest version that may sample a token.
            tokenizer_digest: of the tokenizer that made the ids.
            known: rollout_ids that are not missing; those that arrive are added.
        Raises: NotReadyError when there was no replica for too long, or a prompt fails wherever it is sent;
            PreconditionError if the replicas are ready with weights that are too old; other ServiceErrors at once.
        """
        known = set() if known is None else known
        mine = Asked(prompts, sampling, take, min_policy_version, tokenizer_digest, known)
        self._asked.append(mine)
        try:
            async with task_group() as calls:
                while mine.waiting or mine.num_calls:
                    if not mine.waiting or not self._has_turn(mine):
                        await self._news.wait()
                        continue
                    for call in self._assign(mine, await self._fleet.wait_ready()):
                        self._start(call, calls)
                    if mine.waiting:
                        await self._fleet.changed()
        finally:
            self._asked.remove(mine)
            self._news.tell()

    def idle_fraction_since(self) -> float:
        """Returns for which share of the time since the last call of this a replica had nothing to sample: their mean.

        Replicas that are away or set aside do not count.
        """
        return self._clock.read()

    def _has_turn(self, asked: Asked) -> bool:
        older = self._asked[: self._asked.index(asked)]
        return not any(each.waiting for each in older)

    def _assign(self, asked: Asked, ready: Sequence[Replica]) -> Iterator[Call]:
        """Yields calls for as many waiting prompts as there is room for, each to the replica with the least to do."""
        self._require_new_enough(asked, ready)
        group = asked.sampling.completions_per_prompt
        first = self._rank % len(ready)
        load = {each: each.outstanding for each in (*ready[first:], *ready[:first]) if each not in self._full}
        given: dict[Replica, list[Prompt]] = {}
        while asked.waiting:
            # A group that is larger than the capacity has a replica for itself.
            with_room = [each for each, count in load.items() if count <= 0 or count + group <= each.capacity()]
            if not with_room:
                break
            replica = min(with_room, key=load.__getitem__)
            given.setdefault(replica, []).append(asked.waiting.popleft())
            load[replica] += group
        for replica, prompts in given.items():
            limit = len(prompts) if replica.model is None else replica.model.max_prompts
            for start in range(0, len(prompts), limit):
                yield Call(asked, replica, prompts[start : start + limit])

    def _require_new_enough(self, asked: Asked, ready: Sequence[Replica]) -> None:
        """Raises PreconditionError if the fleet serves its goal, and that is not the requested version."""
        for replica in ready:
            if replica.served is not None and replica.served[0] < asked.min_policy_version:
                raise PreconditionError(
                    f"{replica.name}: the weights are version {replica.served[0]}, not version "
                    f"{asked.min_policy_version} or later, and nothing newer was pushed"
                )

    def _start(self, call: Call, calls: asyncio.TaskGroup) -> None:
        self._clock.tick()
        call.begin()

        def ended(_: asyncio.Task[None]) -> None:
            self._clock.tick()
            call.end()  # here, because a task that is cancelled early never runs
            self._news.tell()

        calls.create_task(self._run(call)).add_done_callback(ended)
        self._news.tell()

    async def _run(self, call: Call) -> None:
        """Makes a call; what it does not bring is waiting again afterwards."""
        metrics = self._fleet.metrics
        try:
            done = await first_of(self._read(call), call.lost.wait())
        except OverloadedError as error:
            self._hold(call.replica, error.retry_after_seconds)
            metrics.prompts_retried.inc(call.give_back(self._judge, error))
        except PreconditionError as error:
            self._fleet.stale(call.replica)
            metrics.prompts_retried.inc(call.give_back(self._judge, error))
        except NotReadyError as error:
            self._fleet.lost(call.replica, error)
            metrics.prompts_redispatched.inc(call.give_back(self._judge, error))
        else:
            if done is None:  # the replica is away, whatever its call says
                given_up = NotReadyError(call.replica.reason or f"{call.replica.name} was given up")
                metrics.prompts_redispatched.inc(call.give_back(self._judge, given_up))

    async def _read(self, call: Call) -> None:
        asked = call.asked
        stream = call.replica.client.generate(
            call.prompts,
            asked.sampling,
            min_policy_version=asked.min_policy_version,
            tokenizer_digest=asked.tokenizer_digest,
            deadline_seconds=self._config.generate_deadline_seconds,
        )
        async for rollout in stream:
            self._clock.tick()
            call.take(rollout)
        call.require_whole()

    def _hold(self, replica: Replica, seconds: float | None) -> None:
        """Asks a replica for nothing new until it has room."""

        def release() -> None:
            self._full.discard(replica)
            replica.touch()

        self._full.add(replica)
        asyncio.get_running_loop().call_later(FULL_SECONDS if seconds is None else seconds, release)

    def _judge(self, num_failures: int, first_at: float, error: ServiceError) -> None:
        """Raises NotReadyError if a prompt failed so often, and for so long, that it will not do better elsewhere."""
        seconds = time.monotonic() - first_at
        if num_failures > MAX_FAILURES and seconds > self._config.wait_for_services_seconds:
            raise NotReadyError(f"{error}; the same prompt has failed {num_failures} times in {seconds:.0f} s")


class IdleClock:
    """Adds up, for the replicas that can be reached, the time in which nothing was asked of them."""

    def __init__(self, fleet: Fleet, now: Callable[[], float] = time.monotonic) -> None:
        """Args: the replicas; a clock in seconds."""
        self._fleet = fleet
        self._now = now
        self._last = now()
        self._idle_seconds = self._seconds = 0.0

    def tick(self) -> None:
        """Adds the time since the last tick; call it before what a replica has to do changes."""
        now = self._now()
        passed, self._last = now - self._last, now
        present = [each for each in self._fleet.replicas.values() if each.state in ("joining", "ready")]
        self._seconds += passed * len(present)
        self._idle_seconds += passed * sum(each.outstanding <= 0 for each in present)

    def read(self) -> float:
        """Returns the idle share of the time since the last reading; 0 if there was none."""
        self.tick()
        fraction = self._idle_seconds / self._seconds if self._seconds else 0.0
        self._idle_seconds = self._seconds = 0.0
        return fraction
