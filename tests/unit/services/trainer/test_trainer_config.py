"""The configuration of online runs."""

from pathlib import Path
from typing import TypeVar

import pytest

from rlhf.config import load_toml
from rlhf.errors import ConfigError
from services.trainer.config.online import OnlineRunConfig, PpoRunConfig, ReinforceRunConfig
from services.trainer.trainings import ONLINE

R = TypeVar("R", bound=OnlineRunConfig)

SMALLEST = """
run_dir = "runs/a"
[model]
path = "m"
[critic]
path = "r"
[prompts]
path = "p.jsonl"
"""


def load(tmp_path: Path, text: str, kind: type[R] = PpoRunConfig) -> R:
    path = tmp_path / "trainer.toml"
    path.write_text(text)
    return load_toml(kind, path)


def test_the_smallest_run_names_models_prompts_and_a_directory(tmp_path: Path) -> None:
    config = load(tmp_path, SMALLEST)
    assert (config.server.port, config.server.metrics_port) == (50054, 9054)
    assert (config.kl.place, config.kl.coef, config.loss.clip_eps_low, config.loss.clip_eps_high) == (
        "reward",
        0.05,
        0.2,
        0.2,
    )
    assert (config.critic.gamma, config.critic.gae_lambda) == (1.0, 0.95)
    assert config.optimizer.learning_rate < config.critic_optimizer.learning_rate


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("[loss]\nclip_esp_low = 0.1", r"unknown key 'loss.clip_esp_low'; did you mean 'clip_eps_low'\?"),
        ("[loss]\nclip_eps_low = 1.5", r"loss.clip_eps_low is 1.5; it should be less than 1"),
        (
            "[loss]\naggregation = 'mean'",
            r"loss.aggregation is 'mean'; it should be 'token-mean', 'sequence",
        ),
        (
            "[training]\nprompts_per_step = 2\nminibatches = 3",
            r"training.minibatches is 3, but a step has only 2",
        ),
        ("[kl]\ncoef = 0\ntarget = 6.0", r"kl.coef is 0, which no kl.target \(6.0\) can adapt"),
        ("[kl]\ntarget = 6.0\nhorizon = 12", r"kl.horizon is 12, too short for 64 rollouts a step"),
        ("[evaluation]\nevery_steps = 0", r"evaluation.every_steps is 0; it should be greater than or equal to 1"),
        (
            "[evaluation]\ngold_target = 'gold:50052'",
            r"evaluation.gold_target is 'gold:50052', but evaluation.prompts_path is absent: name a JSONL",
        ),
        ("[watch]\nkl_budget = 0", r"watch.kl_budget is 0; it should be greater than 0"),
        ("[groups]\ndrop_uniform = true", r"training.group_size is 1, but groups.drop_uniform is true"),
        (
            "[training]\ngroup_size = 2\nmax_policy_lag = 1\n[groups]\ndrop_uniform = true",
            r"training.max_policy_lag is 1, but groups.drop_uniform is true, which draws prompts by the rewards",
        ),
        ("[training]\nmax_policy_lag = 17", r"training.max_policy_lag is 17; it should be less than or equal to 16"),
        (
            "[reward]\noverlong_buffer_tokens = 129",
            r"overlong_buffer_tokens is 129, more than sampling.max_new",
        ),
        ("[ptx]\ncoef = 0.5", r"ptx.coef is 0.5, but ptx.path is absent: name a JSONL file, or remove both"),
        ("[ptx]\npath = 'd.jsonl'", r"ptx.path is 'd.jsonl', but ptx.coef is 0"),
        ("[sampling]\ntemperature = 0", r"sampling.temperature is 0; it should be greater than 0"),
        ("[services]\npolicy_targets = []", r"services.policy_targets"),
        (
            "[services]\npolicy_targets = ['a:1', 'policy']",
            r"services.policy_targets.1 is 'policy'; 'policy' is not 'host:port' with a port from 1 to 65535",
        ),
    ],
)
def test_what_cannot_work_is_refused_by_name(tmp_path: Path, section: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, f"{SMALLEST}{section}\n")


def test_a_section_given_in_part_keeps_its_own_defaults(tmp_path: Path) -> None:
    config = load(tmp_path, f"{SMALLEST}[server]\nport = 0\n[critic_optimizer]\nwarmup_steps = 2\n")
    assert config.server.metrics_port == 9054
    assert config.critic_optimizer.learning_rate == 1e-5


@pytest.mark.parametrize(
    ("critic", "message"),
    [
        ("", r"critic.path is required with critic.kind 'separate'"),
        ('kind = "head"\npath = "r"', r"critic.path is 'r', but critic.kind is 'head'"),
        ('kind = "head"\nwarmup_steps = 2', r"critic.warmup_steps is 2, but critic.kind is 'head'"),
        (
            'path = "r"\nwarmup_steps = 100',
            r"critic.warmup_steps is 100, so that training.steps \(100\) leaves",
        ),
    ],
)
def test_a_critic_is_a_model_or_a_head(tmp_path: Path, critic: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, SMALLEST.replace('path = "r"', critic))


@pytest.mark.parametrize("algorithm", ["grpo", "rloo", "online-dpo"])
def test_a_group_of_one_is_refused_where_groups_are_needed(tmp_path: Path, algorithm: str) -> None:
    text = SMALLEST.replace('[critic]\npath = "r"\n', "")
    assert load(tmp_path, text, ONLINE[algorithm].config_class).training.group_size > 1
    with pytest.raises(ConfigError, match=f"training.group_size is 1, but {algorithm} compares the completions"):
        load(tmp_path, f"{text}[training]\ngroup_size = 1\n", ONLINE[algorithm].config_class)


def test_reinforce_needs_groups_only_for_its_baseline(tmp_path: Path) -> None:
    text = SMALLEST.replace('[critic]\npath = "r"\n', "")
    assert load(tmp_path, text, ReinforceRunConfig).training.group_size == 1
    with pytest.raises(ConfigError, match=r"training.group_size is 1, but"):
        load(tmp_path, f'{text}[reinforce]\nbaseline = "group"\n', ReinforceRunConfig)


def test_label_smoothing_is_refused_where_the_loss_has_none(tmp_path: Path) -> None:
    text = SMALLEST.replace('[critic]\npath = "r"\n', "") + '[dpo]\nvariant = "hinge"\nlabel_smoothing = 0.1\n'
    with pytest.raises(ConfigError, match=r"dpo.label_smoothing is 0.1, but dpo.variant is 'hinge'"):
        load(tmp_path, text, ONLINE["online-dpo"].config_class)


def test_tokens_of_older_versions_are_weighed_unless_the_file_says_how(tmp_path: Path) -> None:
    assert load(tmp_path, SMALLEST).importance_cap is None
    assert load(tmp_path, f"{SMALLEST}[training]\nmax_policy_lag = 1").importance_cap == 2.0
    text = f"{SMALLEST}[training]\nmax_policy_lag = 1\n[loss]\nimportance_cap = 5"
    assert load(tmp_path, text).importance_cap == 5.0
