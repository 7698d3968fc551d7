"""The reward service's configuration, and that a rule is served without torch."""

import subprocess
import sys

import pytest

from rlhf.config import load_config
from rlhf.errors import ConfigError
from services.reward.config import RewardConfig
from services.reward.scorers.config import ScorerConfig, build_scorer, scorer_config
from services.reward.scorers.scorer import TextPair


def load(*argv: str) -> RewardConfig:
    return load_config(RewardConfig, prog="rlhf-reward", argv=argv, env_prefix="RLHF_REWARD")


def test_ports_keep_their_defaults_when_another_is_given():
    config = load("--scorer.kind", "length", "--server.port", "0")
    assert (config.server.port, config.server.metrics_port) == (0, 9052)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "scorer.kind is required"),
        (["--scorer.kind", "model"], "scorer.path is ''; kind model needs the directory of a reward model"),
        (["--scorer.kind", "pattern"], "scorer.pattern is ''; kind pattern needs a regular expression"),
        (["--scorer.kind", "pattern", "--scorer.pattern", "("], r"scorer.pattern is '\('; not a regular expression"),
        (["--scorer.kind", "length", "--limits.max_items", "9000"], "limits.max_queue_items is 8192; .* 9000"),
        (["--scorer.kind", "lenght"], "scorer.kind is 'lenght'; it should be 'model'"),
        (["--scorer.kind", "model", "--scorer.path", "x", "--scorer.device", "gpu"], "scorer.device is 'gpu'"),
    ],
)
def test_a_bad_configuration_names_the_field_the_value_and_the_remedy(argv: list[str], message: str):
    with pytest.raises(ConfigError, match=message):
        load(*argv)


@pytest.mark.parametrize(
    ("config", "reward"),
    [
        (scorer_config(kind="length", target_length=4), 0.75),  # "abc": 1 - |3 - 4| / 4
        (scorer_config(kind="length", target_length=1, length_unit="words"), 1.0),
        (scorer_config(kind="pattern", pattern="b|c", pattern_mode="count"), 2.0),
        (scorer_config(kind="sentiment"), 0.0),
    ],
)
def test_the_factory_builds_the_configured_rule(config: ScorerConfig, reward: float):
    scorer = build_scorer(config)
    assert scorer.score([scorer.prepare(TextPair("p", "abc"))]) == [reward]
    assert scorer.info.name == config.kind


def test_a_rule_is_served_without_importing_torch():
    program = (
        "import sys\n"
        "import services.reward.server\n"
        "from services.reward.scorers.config import build_scorer, scorer_config\n"
        "build_scorer(scorer_config(kind='sentiment'))\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
