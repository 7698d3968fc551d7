"""Dynamic sampling: groups that teach nothing are replaced."""

from collections import Counter
from collections.abc import Sequence

import pytest

from rlhf.errors import RunError
from rlhf.learning.sample import Sample
from rlhf.rollout import Prompt, Rollout
from services.trainer.rollouts.collect import Collected, collect_groups


def make_sample(group_id: str, index: int, reward: float) -> Sample:
    rollout = Rollout(
        rollout_id=f"{group_id}/{index}",
        group_id=group_id,
        prompt_ids=[1],
        completion_ids=[2],
        logprobs=[-1.0],
        policy_versions=[1],
        finish_reason="stop",
    )
    return Sample(rollout=rollout, rewards={"reward": reward}, ref_logprobs=[-1.0])


class Source:
    """Draws prompts 0, 1, 2, ...; the completions of prompt i get the rewards at index i, None for a dropped one."""

    def __init__(self, *rewards: Sequence[float | None]) -> None:
        self.rewards = rewards
        self.cursor = 0
        self.rounds: list[int] = []

    def draw(self, count: int) -> list[Prompt]:
        self.cursor += count
        return [Prompt(group_id=str(number), prompt_ids=[1]) for number in range(self.cursor - count, self.cursor)]

    async def collect(self, prompts: Sequence[Prompt]) -> Collected:
        self.rounds.append(len(prompts))
        collected = Collected(generate_seconds=1.0)
        for prompt in prompts:
            for index, reward in enumerate(self.rewards[int(prompt.group_id)]):
                if reward is None:
                    collected.dropped["score_too_long"] += 1
                else:
                    collected.samples.append(make_sample(prompt.group_id, index, reward))
        return collected


def kept(collected: Collected) -> list[str]:
    return [sample.rollout.rollout_id for sample in collected.samples]


async def test_uniform_groups_are_replaced_by_the_next_prompts() -> None:
    source = Source([1, 1], [0, 1], [2, 2], [3, 4], [5, 5], [6, 7])
    collected = await collect_groups(source.draw, 3, source.collect, max_rounds=4)
    # 3 prompts: one teaches. 2 more (3 and 4): one teaches. 1 more (5) does.
    assert source.rounds == [3, 2, 1]
    assert kept(collected) == ["1/0", "1/1", "3/0", "3/1", "5/0", "5/1"]
    assert (collected.uniform_groups, collected.uniform_rollouts, source.cursor) == (3, 6, 6)
    assert collected.generate_seconds == 3.0


async def test_after_the_last_round_the_step_goes_on_with_what_there_is() -> None:
    source = Source([1, 1], [0, 1], [2, 2], [3, 3])
    collected = await collect_groups(source.draw, 2, source.collect, max_rounds=2)
    assert (source.rounds, kept(collected)) == ([2, 1], ["1/0", "1/1"])


async def test_nothing_to_learn_from_is_an_error_that_says_what_to_do() -> None:
    source = Source(*[[1, 1]] * 4)
    with pytest.raises(RunError, match=r"each of 4 prompts got equal rewards, in 2 rounds.*Raise group_size"):
        await collect_groups(source.draw, 2, source.collect, max_rounds=2)


async def test_a_group_of_which_one_completion_is_left_teaches_nothing() -> None:
    source = Source([1, None], [None, None], [0, 1], [0, 1])
    collected = await collect_groups(source.draw, 2, source.collect, max_rounds=2)
    assert kept(collected) == ["2/0", "2/1", "3/0", "3/1"]
    assert (collected.uniform_groups, collected.dropped) == (1, Counter(score_too_long=3))
    collected.require_enough(3 / 8)  # 4 kept, 1 uniform and 3 dropped
    with pytest.raises(RunError, match="3 of 8"):
        collected.require_enough(0.37)


async def test_a_step_without_any_score_is_left_to_the_check_of_dropped_rollouts() -> None:
    source = Source([None], [None])
    collected = await collect_groups(source.draw, 1, source.collect, max_rounds=2)
    with pytest.raises(RunError, match="2 of 2 rollouts were dropped"):
        collected.require_enough(0.5)
