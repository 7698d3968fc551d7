"""The configuration files that compose and Kubernetes mount."""

import tomllib
from pathlib import Path

import pytest

from rlhf.config import Section, load_toml
from services.policy.config import PolicyConfig
from services.reference.config import ReferenceConfig
from services.reward.config import RewardConfig
from tests.support.paths import ROOT

CONFIGS = ROOT / "deploy" / "k8s" / "base" / "config"
SERVICES: dict[str, type[Section]] = {"policy": PolicyConfig, "reward": RewardConfig, "reference": ReferenceConfig}


@pytest.fixture
def model_overrides(tmp_path: Path) -> dict[str, object]:
    """The policy's class looks for the checkpoint: point the model sections at one that is there."""
    (tmp_path / "config.json").write_text("{}")
    return {"model": {"path": str(tmp_path)}}


@pytest.mark.parametrize("service", SERVICES)
def test_a_deployed_file_has_only_keys_and_values_of_its_service(
    service: str, model_overrides: dict[str, object]
) -> None:
    overrides = {} if service == "reward" else model_overrides
    load_toml(SERVICES[service], CONFIGS / f"{service}.toml", overrides)


def test_every_deployed_file_is_tested() -> None:
    assert {path.stem for path in CONFIGS.glob("*.toml")} == set(SERVICES)


def test_reference_serves_the_policys_first_checkpoint_and_reward_reads_its_tokenizer() -> None:
    policy, reference, reward = (
        tomllib.loads((CONFIGS / f"{name}.toml").read_text()) for name in ("policy", "reference", "reward")
    )
    assert policy["model"] == reference["model"]
    assert reward["scorer"]["tokenizer"] == policy["model"]["path"]
