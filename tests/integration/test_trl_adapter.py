"""TRL's GRPO trainer with our reward function against the running reward service."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.client import Reward, ScoreItem
from rlhf.client.sync import SyncRewardClient
from tests.support.paths import ROOT
from tests.support.reward_process import serving_reward

WORKER = ROOT / "tests/support/trl_worker.py"


@pytest.mark.exhaustive
def test_grpo_trains_three_steps_on_the_rewards_that_the_service_gives(
    tiny_model_path: Path, tiny_reward_path: Path, tmp_path: Path
):
    with serving_reward(tiny_reward_path) as service:
        subprocess.run(
            [sys.executable, WORKER, service.target, str(tiny_model_path), str(tmp_path)], check=True, timeout=240
        )
        result = json.loads((tmp_path / "result.json").read_text())
        assert result["step"] == 3
        assert len(result["calls"]) == 3
        with SyncRewardClient(service.target) as client:
            for call in result["calls"]:
                assert len(call["rewards"]) == 4
                pairs = zip(call["prompts"], call["completions"], strict=True)
                answers = client.score([ScoreItem.conversation(prompt + said) for prompt, said in pairs]).results
                expected = [answer.reward if isinstance(answer, Reward) else None for answer in answers]
                assert call["rewards"] == pytest.approx(expected, abs=1e-5)
            (report,) = [each for each in client.get_report() if each.caller == "trl"]
            assert report.item_count == 2 * 3 * 4  # two functions, three steps of four completions
    steps = [entry for entry in result["log"] if "rewards/grpc_reward/mean" in entry]
    assert len(steps) == 3
    for step, call in zip(steps, result["calls"], strict=True):
        mean = math.fsum(call["rewards"]) / 4
        assert step["rewards/grpc_reward/mean"] == pytest.approx(mean, abs=1e-5)
        assert step["rewards/side_by_side/mean"] == pytest.approx(mean, abs=1e-5)
        assert step["grpc_reward/unscored"] == 0
