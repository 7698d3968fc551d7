"""The configuration of a PPO run."""

from pathlib import Path

import pytest

from rlhf_services.common.config import load_toml
from rlhf_services.common.errors import ConfigError
from rlhf_services.trainer.online_config import PpoRunConfig

SMALLEST = """
run_dir = "runs/a"
[models]
policy_path = "m"
critic_path = "r"
[prompts]
path = "p.jsonl"
"""


def load(tmp_path: Path, text: str) -> PpoRunConfig:
    path = tmp_path / "trainer.toml"
    path.write_text(text)
    return load_toml(PpoRunConfig, path)


def test_the_smallest_run_names_models_prompts_and_a_directory(tmp_path: Path) -> None:
    config = load(tmp_path, SMALLEST)
    assert (config.server.port, config.server.metrics_port) == (50054, 9054)
    assert (config.ppo.kl_coef, config.ppo.clip_eps, config.ppo.gamma, config.ppo.gae_lambda) == (0.05, 0.2, 1.0, 0.95)
    assert config.policy_optimizer.learning_rate < config.critic_optimizer.learning_rate
    assert config.ppo.optimizer_steps == 100


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("[ppo]\nclip_esp = 0.1", r"unknown key 'ppo.clip_esp'; did you mean 'clip_eps'\?"),
        ("[ppo]\nclip_eps = 1.5", r"ppo.clip_eps is 1.5; it should be less than 1"),
        ("[ppo]\nprompts_per_step = 2\nminibatches = 3", r"ppo.minibatches is 3, but a step has only 2 rollouts"),
        ("[ppo]\nkl_coef = 0\nkl_target = 6.0", r"ppo.kl_coef is 0, which no kl_target can adapt"),
        ("[ppo]\nkl_target = 6.0\nkl_horizon = 12", r"ppo.kl_horizon is 12, too short for 64 rollouts a step"),
        ("[sampling]\ntemperature = 0", r"sampling.temperature is 0; it should be greater than 0"),
        ("[services]\npolicy_targets = []", r"services.policy_targets"),
    ],
)
def test_what_cannot_work_is_refused_by_name(tmp_path: Path, section: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, f"{SMALLEST}{section}\n")


def test_a_section_given_in_part_keeps_its_own_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, f"{SMALLEST}[server]\nport = 0\n[critic_optimizer]\nwarmup_steps = 2\n")
    assert config.server.metrics_port == 9054
    assert config.critic_optimizer.learning_rate == 1e-5
