"""The examples that the documentation names are what the code reads."""

import pytest

from rlhf.config import load_toml
from rlhf.data.chat import load_chat_examples
from rlhf.data.preferences import TIED, load_preferences
from rlhf.data.prompts import load_prompts
from services.reward.config import RewardConfig
from services.trainer.config.offline import DpoRunConfig, RewardModelRunConfig, SftRunConfig
from services.trainer.trainings import ONLINE
from tests.support.paths import ROOT
from tests.support.tiny_model import make_tiny_tokenizer


@pytest.mark.parametrize("algorithm", ONLINE)
def test_every_online_example_is_a_configuration_with_prompts_that_can_be_read(algorithm: str):
    name = algorithm.replace("-", "_").replace("++", "")
    config = load_toml(ONLINE[algorithm].config_class, ROOT / f"examples/{name}.toml")
    prompts = load_prompts(ROOT / config.prompts.path, make_tiny_tokenizer(), max_prompt_tokens=512)
    assert (len(prompts.items), prompts.num_too_long) == (3, 0)


def test_the_reward_model_example_is_a_configuration_with_pairs_that_can_be_read():
    config = load_toml(RewardModelRunConfig, ROOT / "examples/reward_model.toml")
    preferences = load_preferences(ROOT / config.data.path, make_tiny_tokenizer(), max_tokens=512)
    assert (len(preferences.pairs), preferences.skipped) == (3, {})


def test_the_rankings_example_can_be_read_with_its_ties():
    preferences = load_preferences(ROOT / "examples/rankings.jsonl", make_tiny_tokenizer(), max_tokens=512)
    # 3 and 2 completions have 3 and 1 pairs; of the second ranking's 3 pairs one is a tie.
    assert [len(group.choices) for group in preferences.groups] == [3, 2, 1]
    assert preferences.skipped == {TIED: 1}


def test_the_ensemble_example_is_a_configuration_of_the_reward_service():
    scorer = load_toml(RewardConfig, ROOT / "examples/reward_ensemble.toml").scorer
    assert (scorer.kind, len(scorer.paths), scorer.combine) == ("ensemble", 3, "mean_minus_std")


def test_the_reward_service_example_is_a_sum_of_a_model_and_a_rule():
    config = load_toml(RewardConfig, ROOT / "examples/reward_service.toml")
    parts = [(part.name, part.weight, part.kind) for part in config.scorer.components]
    assert parts == [("helpful", 1.0, "model"), ("brief", 0.2, "length")]
    assert (config.http.port, config.models.allowed_roots) == (8052, ["/srv/reward-models"])


def test_the_sft_example_is_a_configuration_with_conversations_that_can_be_read():
    config = load_toml(SftRunConfig, ROOT / "examples/sft.toml")
    loaded = load_chat_examples(ROOT / config.data.path, make_tiny_tokenizer(), max_tokens=512)
    assert (len(loaded.examples), loaded.skipped) == (3, {})


def test_the_dpo_example_is_a_configuration_with_pairs_that_can_be_read():
    config = load_toml(DpoRunConfig, ROOT / "examples/dpo.toml")
    preferences = load_preferences(ROOT / config.data.path, make_tiny_tokenizer(), max_tokens=512)
    assert (len(preferences.pairs), preferences.skipped) == (3, {})
