"""The examples that the documentation names are what the code reads."""

from pathlib import Path

from tiny_model import make_tiny_tokenizer

from rlhf_services.common.config import load_toml
from rlhf_services.trainer.data.chat import load_chat_examples
from rlhf_services.trainer.data.preferences import load_preferences
from rlhf_services.trainer.data.prompts import load_prompts
from rlhf_services.trainer.offline.dpo_config import DpoRunConfig
from rlhf_services.trainer.offline.reward_model_config import RewardModelRunConfig
from rlhf_services.trainer.offline.sft_config import SftRunConfig
from rlhf_services.trainer.online_config import PpoRunConfig

ROOT = Path(__file__).parents[2]


def test_the_ppo_example_is_a_configuration_with_prompts_that_can_be_read():
    config = load_toml(PpoRunConfig, ROOT / "examples/ppo.toml")
    prompts = load_prompts(ROOT / config.prompts.path, make_tiny_tokenizer(), max_prompt_tokens=512)
    assert (len(prompts.items), prompts.num_too_long) == (3, 0)


def test_the_reward_model_example_is_a_configuration_with_pairs_that_can_be_read():
    config = load_toml(RewardModelRunConfig, ROOT / "examples/reward_model.toml")
    preferences = load_preferences(ROOT / config.data.path, make_tiny_tokenizer(), max_tokens=512)
    assert (len(preferences.pairs), preferences.num_too_long) == (3, 0)


def test_the_sft_example_is_a_configuration_with_conversations_that_can_be_read():
    config = load_toml(SftRunConfig, ROOT / "examples/sft.toml")
    loaded = load_chat_examples(ROOT / config.data.path, make_tiny_tokenizer(), max_tokens=512)
    assert (len(loaded.examples), loaded.skipped) == (3, {})


def test_the_dpo_example_is_a_configuration_with_pairs_that_can_be_read():
    config = load_toml(DpoRunConfig, ROOT / "examples/dpo.toml")
    preferences = load_preferences(ROOT / config.data.path, make_tiny_tokenizer(), max_tokens=512)
    assert (len(preferences.pairs), preferences.num_too_long) == (3, 0)
