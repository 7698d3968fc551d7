"""Collecting with a journal, and on several ranks: nothing is asked for twice, and every rank ends with everything."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rlhf.errors import NotReadyError, RunError, ServiceError
from rlhf.learning.ranks import ALONE, Ranks, exchange, exchange_failure
from rlhf.rollout import Prompt, Sampling
from services.trainer.config.sections import ServicesConfig
from services.trainer.fleet.peers import Peers
from services.trainer.rollouts.collect import Collected, collect
from services.trainer.rollouts.journal import Journal
from tests.support.fake_services import TOKENIZER, FakePolicy, FakeReference, FakeReward

SAMPLING = Sampling(max_new_tokens=8, temperature=0.5, completions_per_prompt=2)
PROMPTS = [Prompt(group_id=str(index), prompt_ids=[3, index], seed=index) for index in range(5)]


@dataclass
class World:
    """Fakes, and the trainer's view of them."""

    policies: list[FakePolicy]
    reward: FakeReward
    reference: FakeReference
    peers: Peers
    run_dir: Path

    async def collect(self, ranks: Ranks = ALONE, sampling: Sampling = SAMPLING) -> Collected:
        """Collects with a journal that is opened anew, as a restarted trainer does."""
        journal = Journal(self.run_dir, Ranks(ranks.rank)).open_step(1)
        try:
            collected = await collect(PROMPTS, sampling, self.peers, policy_version=0, journal=journal, ranks=ranks)
            journal.sync()
        finally:
            journal.close()
        return collected

    def num_asked(self) -> list[int]:
        """Prompts of each call so far, over all policy services."""
        return [len(request.prompts) for policy in self.policies for request in policy.requests]


@asynccontextmanager
async def make_world(run_dir: Path, *, num_policies: int = 1, wait_seconds: float = 0.5) -> AsyncIterator[World]:
    policies = [FakePolicy() for _ in range(num_policies)]
    reward, reference = FakeReward(), FakeReference()
    targets = ServicesConfig(wait_for_services_seconds=wait_seconds)
    for fake in (*policies, reward, reference):
        await fake.start()
    config = targets.model_copy(
        update={
            "policy_targets": [policy.target for policy in policies],
            "reward_target": reward.target,
            "reference_target": reference.target,
        }
    )
    try:
        async with Peers(config, tokenizer_digest=TOKENIZER, report=lambda message: None) as peers:
            await peers.check()
            yield World(policies, reward, reference, peers, run_dir)
    finally:
        for fake in (*policies, reward, reference):
            await fake.kill()


async def test_what_was_journaled_is_not_asked_for_again_even_if_no_service_is_there(tmp_path: Path) -> None:
    async with make_world(tmp_path) as world:
        first = await world.collect()
        for fake in (*world.policies, world.reward, world.reference):
            await fake.kill()
        second = await world.collect()
        assert second.samples == first.samples
        assert (second.generate_seconds, second.score_wait_seconds, second.reference_wait_seconds) == (0.0, 0.0, 0.0)


async def test_a_collection_that_failed_half_way_ends_with_the_samples_of_one_that_did_not(tmp_path: Path) -> None:
    async with make_world(tmp_path / "whole") as world:
        whole = await world.collect()
    async with make_world(tmp_path) as world:
        await world.reference.kill()
        with pytest.raises(NotReadyError):
            await world.collect()
        await world.reference.start()
        assert (await world.collect()).samples == whole.samples


async def test_rollouts_that_were_scored_before_a_failure_are_not_scored_again(tmp_path: Path) -> None:
    async with make_world(tmp_path) as world:
        held = asyncio.Event()
        world.policies[0].hold_after_first = held
        running = asyncio.create_task(world.collect())
        while not Journal(tmp_path).files():  # noqa: ASYNC110 - a file has no event
            await asyncio.sleep(0.01)
        running.cancel()  # as a kill does: one rollout is journaled, nine are not
        await asyncio.gather(running, return_exceptions=True)
        world.policies[0].hold_after_first = None
        collected = await world.collect()
        assert len(collected.samples) == 10
        assert world.num_asked() == [5, 5]  # the first prompt of the stream lacks a completion: it is asked for whole
        assert world.reward.scored == 10


async def test_drops_are_replayed_with_their_reasons(tmp_path: Path) -> None:
    async with make_world(tmp_path) as world:
        world.reward.outcome = lambda ids: "TOO_LONG" if ids[0] == 1 else 1.0
        first = await world.collect()
        again = await world.collect()
        assert first.dropped == again.dropped == {"score_too_long": 1}
        assert again.samples == first.samples
        assert world.num_asked() == [5]


async def test_other_sampling_settings_are_sampled_anew(tmp_path: Path) -> None:
    async with make_world(tmp_path) as world:
        await world.collect()
        await world.collect(sampling=Sampling(max_new_tokens=9, temperature=0.5, completions_per_prompt=2))
        assert world.num_asked() == [5, 5]


@dataclass
class Meeting:
    """Where the ranks of a test meet."""

    world_size: int
    messages: dict[int, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.barrier = threading.Barrier(self.world_size, timeout=20)


class ThreadRanks(Ranks):
    """Ranks that are tasks of one process."""

    def __init__(self, rank: int, meeting: Meeting) -> None:
        super().__init__(rank, meeting.world_size)
        object.__setattr__(self, "meeting", meeting)

    meeting: Meeting

    def gather_bytes(self, data: bytes) -> list[bytes]:
        self.meeting.messages[self.rank] = data
        self.meeting.barrier.wait()
        gathered = [self.meeting.messages[rank] for rank in range(self.world_size)]
        self.meeting.barrier.wait()
        return gathered

    def barrier(self) -> None:
        pass


async def test_every_rank_asks_for_its_share_and_gets_the_samples_of_all(tmp_path: Path) -> None:
    async with make_world(tmp_path / "alone") as world:
        alone = await world.collect()
    async with make_world(tmp_path, num_policies=2) as world:
        meeting = Meeting(2)
        parts = await asyncio.gather(*(world.collect(ThreadRanks(rank, meeting)) for rank in range(2)))
        assert parts[0].samples == parts[1].samples == alone.samples
        # Rank 0 has prompts 0, 2, 4: two for the first service, one for the second; rank 1 has 1 and 3, the other
        # way round.
        assert sorted(world.num_asked()) == [1, 1, 1, 2]
        num_prompts = [sum(len(request.prompts) for request in policy.requests) for policy in world.policies]
        assert sorted(num_prompts) == [2, 3]
        assert [rank for _, rank, _ in Journal(tmp_path).files()] == [0, 1]
        # One rank alone goes on with what two have journaled.
        assert (await world.collect()).samples == alone.samples
        assert sum(world.num_asked()) == 5


async def test_ranks_wait_for_one_another_and_hear_of_a_failure() -> None:
    meeting = Meeting(2)
    ranks = [ThreadRanks(rank, meeting) for rank in range(2)]
    await asyncio.gather(*(exchange({}, each) for each in ranks))
    results = await asyncio.gather(
        exchange_failure(RunError("the disk is full"), ranks[0]), exchange({}, ranks[1]), return_exceptions=True
    )
    assert isinstance(results[1], RunError)
    assert str(results[1]) == "rank 0: the disk is full"


async def test_if_one_rank_fails_all_do(tmp_path: Path) -> None:
    async with make_world(tmp_path, num_policies=2) as world, make_world(tmp_path) as healthy:
        await world.reference.kill()
        meeting = Meeting(2)
        failures = await asyncio.gather(
            healthy.collect(ThreadRanks(0, meeting)),
            world.collect(ThreadRanks(1, meeting)),
            return_exceptions=True,
        )
        assert all(isinstance(failure, ServiceError) for failure in failures)
        assert str(failures[0]).startswith("rank 1: reference service at ")
