"""The rewards for verifiers in verifiers itself, old and new, each in an environment of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.client import Reward, ScoreItem
from rlhf.client.sync import SyncRewardClient
from tests.support.paths import ROOT
from tests.support.reward_process import serving_reward

WORKER = ROOT / "tests/support/verifiers_worker.py"
UV = Path(sys.executable).parent / "uv"
PAIRS = [("How are you?", "Fine, thanks."), ("Why?", "Because it rains."), ("And you?", "")]


def make_environment(version: str) -> Path:
    """Returns the Python of an environment with that verifiers and what our clients need, kept from run to run."""
    folder = ROOT / f"build/verifiers-{version}"
    python = folder / "bin/python"
    if not (folder / "complete").exists():
        subprocess.run([UV, "venv", "--quiet", "--clear", "--python", sys.executable, folder], check=True)
        install = [UV, "pip", "install", "--quiet", "--python", python, f"verifiers=={version}"]
        subprocess.run([*install, "--requirements", ROOT / "pyproject.toml"], check=True)
        (folder / "complete").touch()
    return python


def link_package(folder: Path) -> Path:
    """Makes our package importable from a folder, without installing it."""
    (folder / "rlhf").symlink_to(ROOT / "rlhf")
    return folder


@pytest.mark.exhaustive
@pytest.mark.parametrize(("mode", "version", "num_errors"), [("rubric", "0.1.14", 2), ("trace", "0.4.0", 1)])
def test_verifiers_gets_the_services_rewards_and_none_that_it_did_not_give(
    mode: str, version: str, num_errors: int, tiny_reward_path: Path, tmp_path: Path
):
    python = make_environment(version)
    with serving_reward(tiny_reward_path) as service:
        worker = subprocess.run(
            [python, WORKER, mode, service.target, json.dumps(PAIRS)],
            env={**os.environ, "PYTHONPATH": str(link_package(tmp_path))},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=120,
        )
        with SyncRewardClient(service.target) as client:
            results = client.score([ScoreItem.text(*pair) for pair in PAIRS[:2]]).results
    expected = [result.reward for result in results if isinstance(result, Reward)]
    answer = json.loads(worker.stdout.splitlines()[-1])
    assert len(expected) == 2
    assert answer["one"] == pytest.approx(expected, abs=1e-5)
    assert answer["one_weighted"] == pytest.approx([2 * reward for reward in expected], abs=1e-5)
    assert answer.get("group", answer["one"]) == pytest.approx(expected, abs=1e-5)
    assert len(answer["errors"]) == num_errors
    assert all("invalid_item" in error for error in answer["errors"])
