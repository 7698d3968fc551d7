"""Evaluation: rows, and their means."""

from contextlib import AsyncExitStack

from rlhf.data.prompts import PromptItem
from services.trainer.config.sections import ServicesConfig
from services.trainer.evaluation.evaluate import EvaluationSettings, evaluate
from services.trainer.fleet.peers import Peers
from tests.support.fake_services import TOKENIZER, FakePolicy, FakeReference, FakeReward


async def test_each_completion_is_scored_by_every_reward_service() -> None:
    policy, true, proxy, reference = FakePolicy(), FakeReward(), FakeReward(), FakeReference()
    true.outcome = lambda ids: -float(ids[0])
    async with AsyncExitStack() as stack:
        for fake in (policy, true, proxy, reference):
            await stack.enter_async_context(fake)
        config = ServicesConfig(policy_targets=[policy.target], reference_target=reference.target)
        rewards = {"true": true.target, "proxy": proxy.target}
        peers = await stack.enter_async_context(
            Peers(config, tokenizer_digest=TOKENIZER, report=print, reward_targets=rewards)
        )
        prompts = [PromptItem("first", [7]), PromptItem("second", [8])]
        result = await evaluate(
            prompts, peers, lambda ids: " ".join(map(str, ids)), EvaluationSettings(samples_per_prompt=2)
        )
    assert [(row.prompt, row.prompt_index) for row in result.rows] == [
        ("first", 0),
        ("first", 0),
        ("second", 1),
        ("second", 1),
    ]
    # Seeds are 0 and 1024; the fake's first id is 1 + seed % 7 + index: 1, 2, then 1024 % 7 = 2: 3, 4.
    assert [row.rewards for row in result.rows] == [{"true": -i, "proxy": i} for i in (1.0, 2.0, 3.0, 4.0)]
    assert result.rows[0].completion == "1 2"
    # The fakes' log-probabilities: policy -1 and -0.5, reference -2 and -2; so 4 - 1.5 nats.
    assert all(row.kl == 2.5 for row in result.rows)
    assert result.summary["reward/proxy"].mean == 2.5
    assert result.summary["num_tokens"].mean == 2.0
    assert result.summary["kl"].half_width == 0.0
    assert result.summary["stopped"].mean == 1.0
    # Two words have a pair of neighbours, and no four.
    assert set(result.summary) == {"reward/true", "reward/proxy", "kl", "num_tokens", "stopped", "distinct_2"}
