"""Collecting rollouts and their scores, with services that answer, fail, die and come back."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import pytest

from rlhf.errors import ConfigError, InternalError, NotReadyError, PreconditionError, RunError
from rlhf.rollout import Prompt, Sampling
from services.trainer.config.sections import ServicesConfig
from services.trainer.fleet.peers import Peers
from services.trainer.rollouts.collect import Collected, Collection, collect
from tests.support.fake_services import TOKENIZER, FakePolicy, FakeReference, FakeReward
from tests.support.trainer_world import until

SAMPLING = Sampling(max_new_tokens=8, temperature=0.5)
PROMPTS = [Prompt(group_id=str(index), prompt_ids=[3, index], seed=index) for index in range(6)]


@dataclass
class World:
    """The fakes and the trainer's view of them."""

    policies: list[FakePolicy]
    reward: FakeReward
    reference: FakeReference
    peers: Peers
    reports: list[str] = field(default_factory=list)

    async def collect(self, sampling: Sampling = SAMPLING, version: int = 0) -> Collected:
        return await collect(PROMPTS, sampling, self.peers, policy_version=version)


@asynccontextmanager
async def make_world(
    num_policies: int = 1, *, wait_seconds: float = 20.0, max_prompts: int = 1000
) -> AsyncIterator[World]:
    policies = [FakePolicy(max_prompts=max_prompts) for _ in range(num_policies)]
    reward, reference = FakeReward(), FakeReference()
    async with AsyncExitStack() as stack:
        for fake in (*policies, reward, reference):
            await stack.enter_async_context(fake)
        config = ServicesConfig(
            policy_targets=[policy.target for policy in policies],
            reward_target=reward.target,
            reference_target=reference.target,
            wait_for_services_seconds=wait_seconds,
        )
        reports: list[str] = []
        peers = await stack.enter_async_context(Peers(config, tokenizer_digest=TOKENIZER, report=reports.append))
        await peers.check()
        yield World(policies, reward, reference, peers, reports)


async def test_samples_come_in_the_order_of_the_prompts_with_their_own_scores() -> None:
    async with make_world() as world:
        collected = await world.collect(sampling=Sampling(max_new_tokens=8, temperature=0.5, completions_per_prompt=2))
        ids = [sample.rollout.rollout_id for sample in collected.samples]
        assert ids == ["0/0", "0/1", "1/0", "1/1", "2/0", "2/1", "3/0", "3/1", "4/0", "4/1", "5/0", "5/1"]
        # The fake scores a completion by its first id, 1 + seed + index.
        assert [sample.reward for sample in collected.samples[:4]] == [1.0, 2.0, 2.0, 3.0]
        assert all(sample.ref_logprobs == [-2.0, -2.0] for sample in collected.samples)
        assert not collected.dropped
        assert world.reference.temperatures == {0.5}


async def test_an_ensembles_disagreement_comes_with_the_reward_if_it_is_a_number() -> None:
    async with make_world() as world:
        # Seeds 0 and 1 give the first ids 1 and 2.
        world.reward.spread = lambda completion_ids: {1: 0.25, 2: math.nan}.get(completion_ids[0])
        collected = await world.collect()
        assert [sample.spread for sample in collected.samples] == [0.25, None, None, None, None, None]
        assert collected.samples[0].spreads == {"reward": 0.25}


async def test_prompts_are_spread_over_the_policy_services() -> None:
    async with make_world(num_policies=4) as world:
        collected = await world.collect()
        num_prompts = [len(request.prompts) for policy in world.policies for request in policy.requests]
        assert sorted(num_prompts) == [1, 1, 2, 2]
        assert len(collected.samples) == 6


async def test_no_call_has_more_prompts_than_the_service_takes() -> None:
    async with make_world(max_prompts=4) as world:
        collected = await world.collect()
        assert [len(request.prompts) for request in world.policies[0].requests] == [4, 2]
        assert len(collected.samples) == 6


async def test_a_rollout_is_scored_before_the_others_have_arrived() -> None:
    async with make_world() as world:
        gate = world.policies[0].hold_after_first = asyncio.Event()
        running = asyncio.create_task(world.collect())
        await asyncio.wait_for(world.reward.arrived.wait(), 10)  # while all rollouts but one are still missing
        gate.set()
        assert len((await running).samples) == 6


async def test_a_failed_score_drops_the_rollout_and_is_counted() -> None:
    async with make_world() as world:
        outcomes: dict[int, float | str] = {1: "TOO_LONG", 2: "NOT_FINITE", 3: math.nan}
        world.reward.outcome = lambda ids: outcomes.get(ids[0], float(ids[0]))
        collected = await world.collect()
        assert [sample.rollout.group_id for sample in collected.samples] == ["3", "4", "5"]
        assert collected.dropped == {"score_too_long": 1, "score_not_finite": 2}
        with pytest.raises(RunError, match=r"3 of 6 rollouts were dropped \(2 score_not_finite, 1 score_too_long\)"):
            collected.require_enough(0.4)
        collected.require_enough(0.5)


async def test_non_finite_log_probabilities_drop_the_rollout() -> None:
    async with make_world() as world:
        world.reference.logprobs = lambda ids: [-math.inf if ids[0] == 1 else -2.0, -2.0]
        collected = await world.collect()
        assert collected.dropped == {"reference_not_finite": 1}
        world.policies[0].logprob = math.nan
        collected = await world.collect()
        assert collected.dropped == {"sampler_not_finite": 6}
        with pytest.raises(RunError, match="6 of 6"):
            collected.require_enough(0.99)


async def test_tokens_of_another_policy_version_are_not_trained_on() -> None:
    async with make_world() as world:
        world.policies[0].sampled_version = 7
        assert (await world.collect()).dropped == {"policy_version_not_current": 6}


@pytest.mark.parametrize(("newest", "dropped"), [(7, {}), (6, {"policy_version_not_current": 6})])
async def test_tokens_of_versions_published_meanwhile_are_taken_where_sampling_runs_ahead(
    newest: int, dropped: dict[str, int]
) -> None:
    async with make_world() as world:
        world.policies[0].sampled_version = 7
        collection = Collection(PROMPTS, SAMPLING, world.peers, policy_version=0, newest_version=lambda: newest)
        assert (await collection.finish(collection.collect_share())).dropped == dropped


async def test_a_collection_that_runs_in_the_background_ends_where_it_is_waited_for() -> None:
    async with make_world() as world:
        collection = Collection(PROMPTS, SAMPLING, world.peers, policy_version=0)
        running = asyncio.create_task(collection.collect_share())
        await asyncio.wait({running})
        collected = await collection.finish(running)
        assert [sample.reward for sample in collected.samples] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


async def test_a_broken_stream_keeps_what_arrived_and_asks_for_the_rest() -> None:
    async with make_world() as world:
        world.policies[0].break_after = 4
        collected = await world.collect()
        assert len(collected.samples) == 6
        assert [len(request.prompts) for request in world.policies[0].requests] == [6, 2]
        assert world.reward.scored == 6
        away, back = world.reports
        assert "policy service at 127.0.0.1" in away
        assert "waiting up to 20 s" in away
        assert back.endswith("is back")


async def test_a_group_of_which_something_is_missing_is_asked_for_whole_and_not_doubled() -> None:
    async with make_world() as world:
        world.policies[0].break_after = 3  # the last prompt's two completions, and one of the prompt before
        collected = await world.collect(sampling=Sampling(max_new_tokens=8, completions_per_prompt=2))
        assert [len(request.prompts) for request in world.policies[0].requests] == [6, 5]
        assert len({sample.rollout.rollout_id for sample in collected.samples}) == 12
        assert world.reward.scored == 12


async def test_without_weights_to_push_stale_ones_are_an_error() -> None:
    async with make_world() as world:
        with pytest.raises(PreconditionError, match="the weights are version 0, not version 2 or later"):
            await world.collect(version=2)
        assert world.policies[0].requests == []


async def test_no_reward_is_made_up_when_the_scorer_dies_mid_batch() -> None:
    async with make_world() as world:
        world.reward.hold = asyncio.Event()
        running = asyncio.create_task(world.collect())
        await world.reward.arrived.wait()
        await world.reward.kill()

        async def is_reported() -> bool:
            return bool(world.reports)

        await until(is_reported)  # the channel tries for a second before it says so
        assert not running.done()
        world.reward.hold = None
        await world.reward.start()
        collected = await running
        assert [sample.reward for sample in collected.samples] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
        assert not collected.dropped
        assert len([report for report in world.reports if "reward service" in report]) == 2  # away once, back once


async def test_a_service_that_stays_away_ends_in_an_error_that_names_it() -> None:
    async with make_world(wait_seconds=0.5) as world:
        await world.reference.kill()
        with pytest.raises(NotReadyError, match=r"reference service at .* did not come back in time: start it again"):
            await world.collect()


async def test_a_reference_that_changed_ends_the_run() -> None:
    async with make_world() as world:
        world.reference.version = "another-model"
        with pytest.raises(RunError, match="now serves another-mode"):
            await world.collect()


async def test_a_wrong_number_of_reference_log_probabilities_is_refused() -> None:
    async with make_world() as world:
        world.reference.logprobs = lambda ids: [-2.0]
        with pytest.raises(InternalError, match=r"sent 1 log-probabilities for 2 tokens of rollout"):
            await world.collect()


async def test_a_service_with_another_tokenizer_is_refused_by_name() -> None:
    async with make_world() as world:
        world.reward.tokenizer = "0123456789abcdef"
        with pytest.raises(
            ConfigError, match=r"reward service at .* has tokenizer 0123456789ab, the trained policy has"
        ):
            await world.peers.check()
        world.reward.tokenizer = ""
        with pytest.raises(ConfigError, match="has no tokenizer"):
            await world.peers.check()
